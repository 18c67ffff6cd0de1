"""A base and a delta give the model, whole or not at all, whatever their files look like."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_weights import (
    ROWS,
    add_files,
    assert_equal,
    base_and_delta,
    base_and_our_delta,
    fine_tuned,
    llama,
    load,
    original_delta,
    original_sum,
    save,
)

from gpt4roi.checkpoint import writer
from gpt4roi.checkpoint.delta import TABLES, model_fingerprint, plan_apply, plan_make
from gpt4roi.cli import main
from gpt4roi.errors import InputError
from gpt4roi.models.original_format import to_ours


def expected_sum() -> dict[str, torch.Tensor]:
    base = llama()
    return original_sum(base, original_delta(base, fine_tuned(base)))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
def test_the_result_is_the_sum_from_any_files_into_any_number_of_shards(tmp_path, kind, shards):
    base, delta = base_and_delta(tmp_path, kind, shards)
    plan = plan_apply(base, delta, tmp_path / "out", output_format="original", max_shard_size="4kB")
    plan.write()
    assert len(plan.shards) > 3
    assert_equal(load(tmp_path / "out"), expected_sum())
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == plan.nbytes
    assert set(index["weight_map"].values()) == {path.name for path in (tmp_path / "out").glob("model-*")}


def test_our_format_is_the_default_with_our_names_and_a_config_of_the_right_sizes(tmp_path):
    base, delta = base_and_delta(tmp_path)
    plan_apply(base, delta, tmp_path / "out").write()
    assert_equal(load(tmp_path / "out"), {to_ours(name): tensor for name, tensor in expected_sum().items()})
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["model_type"] == "gpt4roi"
    assert config["dtype"] == "float16"
    assert config["text_config"]["vocab_size"] == ROWS + 6
    assert [config[f"{name}_token_id"] for name in ("image", "region", "image_start", "image_end")] == [21, 22, 24, 25]
    assert config["mm_vision_tower"] == "tower"
    assert (tmp_path / "out/tokenizer.model").read_bytes() == b"carried along"


def test_a_bfloat16_base_is_rounded_to_float16_first(tmp_path):
    base = {name: tensor.bfloat16() for name, tensor in llama().items()}
    delta = original_delta(llama(), fine_tuned(llama()))
    save(tmp_path / "base", base)
    add_files(save(tmp_path / "delta", delta))
    plan_apply(tmp_path / "base", tmp_path / "delta", tmp_path / "out", output_format="original").write()
    assert_equal(load(tmp_path / "out"), original_sum(base, delta))


def test_making_is_the_difference_and_applying_it_keeps_the_promised_fingerprint(tmp_path):
    base, delta = base_and_our_delta(tmp_path)
    assert_equal(load(delta), original_delta(llama(), fine_tuned(llama())))
    plan = plan_apply(base, delta, tmp_path / "out", verify=True)
    plan.write()
    promised = json.loads((delta / "delta.json").read_text())["result"]
    assert plan.summary.endswith(f"fingerprint {promised}, as the delta promises")
    assert model_fingerprint(tmp_path / "out") == promised


def test_a_delta_without_fingerprint_gives_a_result_said_to_be_unverified(tmp_path):
    base, delta = base_and_delta(tmp_path)
    assert "unverified, since the delta carries no fingerprint" in plan_apply(base, delta, tmp_path / "out").summary


def test_the_fingerprint_accepts_the_same_base_in_other_files_and_types(tmp_path):
    _, delta = base_and_our_delta(tmp_path)
    halves = {name: tensor.half() for name, tensor in llama().items()}
    save(tmp_path / "again", halves, "bin", shards=2)
    plan_apply(tmp_path / "again", delta, tmp_path / "out").write()
    assert (tmp_path / "out/config.json").exists()


def test_a_bfloat16_copy_of_the_base_is_taken_and_said_to_be_rounded_and_another_one_is_not(tmp_path):
    _, delta = base_and_our_delta(tmp_path)
    copy = {name: tensor.bfloat16() for name, tensor in llama().items()}
    save(tmp_path / "copy", copy)
    plan = plan_apply(tmp_path / "copy", delta, tmp_path / "out", output_format="original", verify=True)
    plan.write()
    assert "the base is a bfloat16 copy of the one the delta was made from, and the result differs" in plan.summary
    assert_equal(load(tmp_path / "out"), original_sum(copy, load(delta)))
    save(tmp_path / "copy", copy | {"lm_head.weight": copy["lm_head.weight"] * 1.01})
    with pytest.raises(InputError, match=r"1 of 21 tensors have other numbers, first lm_head.weight"):
        plan_apply(tmp_path / "copy", delta, tmp_path / "again")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_delta_without_record_is_told_by_its_weights_in_place_of_a_model(tmp_path, kind, capsys):
    """As the released one, whose files are those of a model in the original's format."""
    _, delta = base_and_delta(tmp_path, kind, shards=2)
    out, image = str(tmp_path / "out"), str(tmp_path / "image.png")
    Image.new("RGB", (30, 20)).save(image)
    for words in (
        ["describe", image, "--box", "1,2,3,4", "--model", str(delta), "--device", "cpu"],
        ["convert", str(delta), out, "--to", "hf"],
        ["make-delta", "--base", str(tmp_path / "base"), "--target", str(delta), "--delta", out],
    ):
        assert main(words) == 2
        told = f"{delta} holds a weight delta, not a model; add it to its base: gpt4roi apply-delta --base BASE"
        assert told in capsys.readouterr().err
    assert main(["export", str(delta), out]) == 0
    assert f"wrote {out}: delta, " in capsys.readouterr().out
    plan_apply(tmp_path / "base", tmp_path / "out", tmp_path / "sum").write()


def test_one_changed_number_that_no_sample_sees_is_found_while_streaming_and_nothing_stays(tmp_path):
    rows = 4000
    base = llama(rows=rows)
    save(tmp_path / "base", base)
    add_files(save(tmp_path / "trained", fine_tuned(base)), rows)
    plan_make(tmp_path / "base", tmp_path / "trained", tmp_path / "delta").write()
    base["lm_head.weight"][rows // 4, 3] += 1
    save(tmp_path / "base", base)
    plan = plan_apply(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    with pytest.raises(InputError, match=r"lm_head.weight is not what the delta was made from"):
        plan.write()
    assert not list(tmp_path.glob("out*"))


def test_progress_hears_of_every_byte(tmp_path):
    base, delta = base_and_delta(tmp_path)
    plan = plan_apply(base, delta, tmp_path / "out", max_shard_size="4kB")
    seen = []
    plan.write(seen.append)
    assert sum(seen) == plan.nbytes == sum(tensor.nbytes for tensor in load(tmp_path / "out").values())


def interrupt_after(count: int):
    def progress(_bytes: int) -> None:
        nonlocal count
        count -= 1
        if count < 0:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_run_is_continued_with_its_finished_files(tmp_path):
    base, delta = base_and_delta(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        plan_apply(base, delta, tmp_path / "out", max_shard_size="4kB").write(interrupt_after(15))
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out.partial").glob("model-*.safetensors")}
    assert finished
    assert not (tmp_path / "out").exists()
    plan_apply(base, delta, tmp_path / "out", output_format="hf", max_shard_size="4kB").write()
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in finished} == finished
    assert_equal(load(tmp_path / "out"), {to_ours(name): tensor for name, tensor in expected_sum().items()})


def test_an_interrupted_run_with_other_inputs_starts_again(tmp_path):
    base, delta = base_and_delta(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        plan_apply(base, delta, tmp_path / "out", max_shard_size="4kB").write(interrupt_after(15))
    shifted = {name: tensor + 1 for name, tensor in llama().items()}
    save(base, shifted)
    for file in base.iterdir():  # more than one tick of the file system's clock, however slow it is
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**10))
    plan_apply(base, delta, tmp_path / "out", output_format="original", max_shard_size="4kB").write()
    delta_tensors = original_delta(llama(), fine_tuned(llama()))
    assert_equal(load(tmp_path / "out"), original_sum(shifted, delta_tensors))


def test_an_old_target_is_replaced_only_by_a_whole_one(tmp_path):
    base, delta = base_and_delta(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("kept")
    plan = plan_apply(base, delta, tmp_path / "out", overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        plan.write(interrupt_after(5))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]
    plan.write()
    assert not (tmp_path / "out/old").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "delta", "out"]


def test_a_target_that_is_a_link_to_an_old_folder_gives_way_and_the_folder_stays(tmp_path):
    base, delta = base_and_delta(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/old").write_text("kept")
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    plan_apply(base, delta, tmp_path / "out", overwrite=True).write()
    assert (tmp_path / "out/config.json").exists() and not (tmp_path / "out").is_symlink()
    assert (tmp_path / "elsewhere/old").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "delta", "elsewhere", "out"]


def test_an_old_target_comes_back_after_a_kill_between_the_two_renames(tmp_path):
    base, delta = base_and_delta(tmp_path)
    (tmp_path / "out.replaced").mkdir()
    (tmp_path / "out.replaced/old").write_text("kept")
    with pytest.raises(InputError, match="exists and is not empty"):
        plan_apply(base, delta, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        plan_apply(base, delta, tmp_path / "out", overwrite=True).write(interrupt_after(5))
    assert (tmp_path / "out/old").read_text() == "kept"


def test_an_old_target_that_was_half_deleted_when_the_kill_came_never_comes_back(tmp_path, monkeypatch):
    base, delta = base_and_delta(tmp_path)
    plan_apply(base, delta, tmp_path / "out").write()

    def killed(path, ignore_errors=False):
        if not ignore_errors:
            (path / "config.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            plan_apply(base, delta, tmp_path / "out", overwrite=True).write()
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        plan_apply(base, delta, tmp_path / "out").write(interrupt_after(5))
    assert not (tmp_path / "out").exists()
    plan_apply(base, delta, tmp_path / "out").write()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "delta", "out"]


def test_two_runs_into_one_target_do_not_mix(tmp_path):
    base, delta = base_and_delta(tmp_path)
    plan = plan_apply(base, delta, tmp_path / "out")
    other = os.open(tmp_path / "out.partial.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another run is writing"):
        plan.write()
    assert not (tmp_path / "out.partial").exists()
    os.close(other)
    plan.write()
    assert_equal(load(tmp_path / "out"), {to_ours(name): tensor for name, tensor in expected_sum().items()})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "delta", "out"]


def test_a_second_run_is_kept_out_until_the_first_one_s_folder_is_in_place_and_the_old_one_gone(tmp_path, monkeypatch):
    base, delta = base_and_delta(tmp_path)
    plan_apply(base, delta, tmp_path / "out").write()
    first, second = (plan_apply(base, delta, tmp_path / "out", overwrite=True) for _ in range(2))
    moments = []

    def meet_the_second(name, work, *arguments):
        moments.append(name)
        with pytest.raises(InputError, match="another run is writing"):
            second.write()
        work(*arguments)

    for name in ("sync", "remove_folder"):
        monkeypatch.setattr(writer, name, partial(meet_the_second, name, getattr(writer, name)))
    first.write()
    assert moments == ["remove_folder", "sync", "sync", "remove_folder"]
    assert_equal(load(tmp_path / "out"), {to_ours(name): tensor for name, tensor in expected_sum().items()})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "delta", "out"]


@pytest.fixture
def padded(tmp_path) -> Path:
    """A base of 38 rows whose tokenizer has 20 tokens, and what was trained on it: the six added ones fit in."""
    base = llama(rows=38)
    trained = fine_tuned(base)
    for table in TABLES:
        trained[table] = trained[table][:38]
    save(tmp_path / "base", base)
    add_files(save(tmp_path / "trained", trained), rows=20)
    plan_make(tmp_path / "base", tmp_path / "trained", tmp_path / "delta").write()
    return tmp_path


@pytest.mark.parametrize("recorded", [True, False], ids=["with delta.json", "without"])
def test_a_delta_of_a_table_padded_beyond_the_tokenizer_applies_to_its_own_base(padded, recorded):
    if not recorded:
        (padded / "delta/delta.json").unlink()
    plan_apply(padded / "base", padded / "delta", padded / "out", output_format="original").write()
    assert_equal(load(padded / "out"), original_sum(llama(rows=38), load(padded / "delta")))
    torch.testing.assert_close(load(padded / "out"), load(padded / "trained"), atol=1e-3, rtol=0)


def test_a_delta_with_its_record_refuses_a_base_of_another_padding(padded):
    save(padded / "base", llama(rows=36))
    with pytest.raises(InputError, match=r"is not the one that the delta was made from"):
        plan_apply(padded / "base", padded / "delta", padded / "out")


@pytest.mark.parametrize("number", [70000.0, -1e6, float("nan")])
@pytest.mark.parametrize("side", ["base", "trained"])
def test_a_number_that_float16_cannot_hold_is_refused_with_its_tensor_and_no_delta_stays(tmp_path, side, number):
    base = llama()
    weights = {"base": base, "trained": {name: tensor.float() for name, tensor in fine_tuned(base).items()}}
    weights[side]["model.norm.weight"][3] = number
    save(tmp_path / "base", weights["base"])
    add_files(save(tmp_path / "trained", weights["trained"]))
    plan = plan_make(tmp_path / "base", tmp_path / "trained", tmp_path / "delta")
    with pytest.raises(InputError, match=r"trained/model.safetensors: model.norm.weight does not fit the float16"):
        plan.write()
    assert not list(tmp_path.glob("delta*"))


def test_no_result_holds_a_number_that_the_sum_of_base_and_delta_loses(tmp_path):
    base, delta = base_and_delta(tmp_path)
    weights = load(delta)
    weights["model.mm_projector.weight"][0, 0] = float("nan")
    save(delta, weights)
    with pytest.raises(InputError, match=r"model.mm_projector.weight does not fit .* base \+ delta has at least 1 num"):
        plan_apply(base, delta, tmp_path / "out", verify=True).write()
    assert not list(tmp_path.glob("out*"))
