"""What a checkpoint lacks is drawn by the model's own initialisation, never left as it lies in memory."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config, tiny_model
from transformers import AutoModelForImageTextToText

from gpt4roi.errors import InputError
from gpt4roi.models import GPT4RoIForConditionalGeneration as Model

KINDS = ("clip", "pyramid")


@pytest.fixture(autouse=True)
def memory_full_of_nan(monkeypatch):
    """Whatever is only allocated holds NaN, so that a tensor which nothing was written to is seen."""
    plain = torch.empty_like
    fill = lambda like, **options: plain(like, **options).fill_(float("nan") if like.is_floating_point() else 77)  # noqa: E731
    monkeypatch.setattr(torch, "empty_like", fill)


def statistics(tensor: torch.Tensor) -> tuple[float, float]:
    return tensor.float().mean().item(), tensor.float().std(correction=0).item()


def check_drawn(model, fresh, names):
    """The named tensors are finite and of the mean and deviation that they have in a model without a checkpoint."""
    ours, theirs = model.state_dict(), fresh.state_dict()
    assert names
    for name in names:
        (mean, std), (fresh_mean, fresh_std) = statistics(ours[name]), statistics(theirs[name])
        spread = max(fresh_std, 1e-6)
        assert ours[name].isfinite().all(), name
        # The difference of two drawn means deviates by sqrt(2) of what one does.
        assert abs(mean - fresh_mean) <= 5 * 2**0.5 * spread / ours[name].numel() ** 0.5 + 1e-6, name
        assert std == pytest.approx(fresh_std, rel=1.0 if ours[name].numel() < 60 else 0.3, abs=1e-6), name


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_another_shape_are_drawn_and_the_others_kept(kind, tmp_path):
    saved = tiny_model(kind)
    saved.save_pretrained(tmp_path)
    changes = {"roi_output_size": 2, "ignore_mismatched_sizes": True}
    model, info = Model.from_pretrained(tmp_path, **changes, output_loading_info=True)
    wrong = [entry[0] for entry in info["mismatched_keys"]]
    assert wrong == [
        {"clip": "region_encoder.pooler.flatten_linear.weight", "pyramid": "region_encoder.hidden.weight"}[kind]
    ]
    check_drawn(model, tiny_model(kind, seed=1, roi_output_size=2), wrong)
    before, after = saved.state_dict(), model.state_dict()
    assert [name for name in before if name not in wrong and not torch.equal(before[name], after[name])] == []


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_missing_tensors_are_drawn_for_those_who_ask_and_an_error_for_others(kind, tmp_path):
    tiny_model(kind).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = [name for name in weights if name.startswith(("region_encoder.", "mm_projector."))]
    save_file(
        {name: weights[name] for name in weights if name not in gone}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(InputError, match=f"{len(gone)} missing"):
        Model.from_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    check_drawn(model, tiny_model(kind, seed=1), gone)


def test_a_model_made_of_a_configuration_and_no_tensor_at_all_is_drawn_whole():
    model = Model.from_pretrained(None, config=tiny_config(), state_dict={})
    check_drawn(model, tiny_model(seed=1), list(model.state_dict()))


def test_a_pyramid_s_tower_is_not_drawn_in_part(tmp_path):
    tiny_model("pyramid").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if name.startswith("vision_tower."))
    save_file(
        {name: weights[name] for name in weights if name != lost}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(InputError, match=f"1 missing: {lost}"):
        Model.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
