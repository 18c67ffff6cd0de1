"""The model computes what the original computed, number by number."""

from __future__ import annotations

import pytest
import torch

from gpt4roi.errors import InputError
from gpt4roi.geometry.boxes import to_rois
from gpt4roi.models import original_format

TOLERANCE = 2e-5


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(actual.detach(), expected, atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def seen(narrow, recorded):
    """What the tower sees of the three images."""
    return narrow.encode_image(recorded["pixel_values"])


@pytest.fixture(scope="module")
def pyramid(narrow, seen):
    """The fused pyramid of the three images."""
    with torch.no_grad():
        return narrow.region_encoder.fusion(seen[1])


@pytest.fixture(scope="module")
def pooled(narrow, pyramid, boxes):
    """The boxes pooled from each level."""
    rois = to_rois(boxes, (224, 224))
    with torch.no_grad():
        return [narrow.region_encoder.pooler.pool(level, rois, 224) for level in pyramid]


@pytest.fixture(scope="module")
def step(narrow, recorded, boxes):
    """One forward and backward pass over the recorded batch: the output, and the gradient of each parameter."""
    narrow.zero_grad()
    output = narrow(
        recorded["input_ids"], recorded["attention_mask"], recorded["pixel_values"], boxes, recorded["labels"]
    )
    output.loss.backward()
    gradients = {name: value.grad for name, value in narrow.named_parameters() if value.grad is not None}
    narrow.zero_grad()
    return output, gradients


@pytest.mark.parametrize("level", range(4))
def test_tower_levels_are_the_recorded_hidden_states_without_the_class_token(seen, recorded, level):
    assert_close(seen[1][level].flatten(2).transpose(1, 2), recorded[f"clip_level{level}"])


def test_image_tokens_are_the_last_level(seen, recorded):
    assert_close(seen[0], recorded["clip_level3"])


def test_projected_image_tokens_equal_the_recording(narrow, recorded):
    with torch.no_grad():
        assert_close(narrow.get_image_features(recorded["pixel_values"]), recorded["mm_projector"])


@pytest.mark.heavy
@pytest.mark.parametrize("level", range(4))
def test_fused_pyramid_equals_the_recording(pyramid, recorded, level):
    assert pyramid[level].shape == (3, 64, 128 >> level, 128 >> level)
    assert_close(pyramid[level].mean((2, 3)), recorded[f"fuse_out{level}_mean_bc"])
    assert_close(pyramid[level].std((2, 3)), recorded[f"fuse_out{level}_std_bc"])
    step = pyramid[level].shape[-1] // 8
    assert_close(pyramid[level][:, ::4, ::step, ::step], recorded[f"fuse_out{level}_slice"])


@pytest.mark.heavy
@pytest.mark.parametrize("level", range(4))
def test_boxes_pooled_from_each_level_equal_the_recording(narrow, pooled, recorded, level):
    assert_close(pooled[level], recorded[f"roi{level}"])
    with torch.no_grad():
        mixed = narrow.region_encoder.pooler.pool_convs[level](pooled[level])
    assert_close(mixed[:, ::8], recorded[f"pconv{level}_slice"])


def test_position_embedding_of_boxes_equals_the_recording(narrow, boxes, recorded):
    with torch.no_grad():
        assert_close(narrow.region_encoder.pooler.position_embedding(torch.cat(boxes)), recorded["pos_embed"])


def test_region_embeddings_equal_the_recording(narrow, recorded, boxes):
    with torch.no_grad():
        features = narrow.get_region_features(recorded["pixel_values"], boxes)
    assert_close(features, torch.cat([recorded[f"region_{sample}"] for sample in range(3)]))


def test_input_embeddings_equal_the_recording(narrow, recorded, boxes):
    with torch.no_grad():
        embeddings, _, _ = narrow.embed(recorded["input_ids"], recorded["pixel_values"], boxes)
    assert_close(embeddings, recorded["inputs_embeds"])


@pytest.mark.heavy
def test_logits_and_loss_equal_the_recording(step, recorded, facts):
    tokens = recorded["attention_mask"].bool()
    assert_close(step[0].logits[tokens], recorded["logits"][tokens])
    assert step[0].loss.item() == pytest.approx(facts["loss"], abs=1e-6)


@pytest.mark.heavy
def test_every_gradient_norm_equals_the_recording_and_the_tower_has_none(step, facts):
    norms = {original_format.to_original(name): value.norm().item() for name, value in step[1].items()}
    assert norms == pytest.approx(facts["grad_norms"], rel=1e-3)


def test_gradient_slices_equal_the_recording(step, recorded):
    ours = {original_format.to_original(name): value for name, value in step[1].items()}
    names = [name.removeprefix("grad_slice.") for name in recorded if name.startswith("grad_slice.")]
    assert len(names) == 9
    for name in names:
        expected = recorded[f"grad_slice.{name}"]
        got = ours[name].flatten()[: len(expected)]
        assert (got - expected).norm() <= 1e-3 * expected.norm(), name


@pytest.mark.heavy
def test_loss_at_labels_only_is_the_same_loss_from_fewer_logits(narrow, recorded, boxes, facts):
    with torch.no_grad():
        output = narrow(
            recorded["input_ids"],
            recorded["attention_mask"],
            recorded["pixel_values"],
            boxes,
            recorded["labels"],
            logits_at_labels_only=True,
        )
    assert output.logits.shape == (int((recorded["labels"][:, 1:] != -100).sum()), 606)
    assert output.loss.item() == pytest.approx(facts["loss"], abs=1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_answer_and_its_scores_equal_the_recording(narrow, recorded, recorded_cases, use_cache):
    result = narrow.generate(
        input_ids=recorded_cases["generate.input_ids"],
        pixel_values=recorded["pixel_values"][:1],
        boxes=[recorded_cases["generate.boxes"]],
        max_new_tokens=12,
        do_sample=False,
        use_cache=use_cache,
        output_scores=True,
        return_dict_in_generate=True,
    )
    assert result.sequences.tolist() == recorded_cases["generate.output_ids"].tolist()
    assert_close(torch.cat(result.scores), recorded_cases["generate.scores"])


@pytest.mark.parametrize("given", [[torch.zeros(0, 4)], None])
def test_no_box_in_the_batch_gives_the_recorded_loss_and_zero_gradients_for_regions(
    narrow, recorded, recorded_cases, facts, given
):
    length = int(recorded["attention_mask"][2].sum())
    output = narrow(
        recorded["input_ids"][2:, :length],
        pixel_values=recorded["pixel_values"][2:],
        boxes=given,
        labels=recorded["labels"][2:, :length],
    )
    assert output.loss.item() == pytest.approx(facts["case_all_zero_boxes"]["loss"], abs=1e-6)
    assert output.region_features.shape == (0, 128)
    assert_close(output.logits[0, -1], recorded_cases["case_all_zero_boxes.logits_last"])
    narrow.zero_grad()
    output.loss.backward()
    largest = [value.grad.abs().max().item() for value in narrow.region_encoder.parameters()]
    assert len(largest) == 43
    assert max(largest) == 0
    narrow.zero_grad()


@pytest.mark.parametrize("with_slot", [True, False], ids=["one image a sample", "images of samples that have one"])
def test_text_alone_beside_a_region_sample_gives_the_recorded_loss(
    narrow, recorded, recorded_cases, facts, boxes, with_slot
):
    ids = recorded_cases["case_text_only.input_ids"]
    rows = [0, 1] if with_slot else [1]
    given = [torch.zeros(0, 4), boxes[1]] if with_slot else [boxes[1]]
    with torch.no_grad():
        output = narrow(
            ids,
            ids != facts["token_ids"]["[PAD]"],
            recorded["pixel_values"][rows],
            given,
            recorded_cases["case_text_only.labels"],
        )
    assert output.loss.item() == pytest.approx(facts["case_text_only_plus_region"]["loss"], abs=1e-6)
    kept = (ids != facts["token_ids"]["[PAD]"])[:, ::7]
    assert_close(output.logits[:, ::7][kept], recorded_cases["case_text_only.logits"][kept])


def test_several_tokens_for_one_box_are_refused_with_both_counts(narrow, recorded, boxes):
    with pytest.raises(InputError, match="sample 0 of the batch: 3 <bbox> tokens but 1 boxes"):
        narrow(recorded["input_ids"][:1], pixel_values=recorded["pixel_values"][:1], boxes=[boxes[0][:1]])


def test_identical_boxes_get_identical_embeddings(narrow, recorded, boxes):
    with torch.no_grad():
        features = narrow.get_region_features(recorded["pixel_values"][:1], [boxes[0][[0, 0, 1]]])
    assert torch.equal(features[0], features[1])
    assert (features[0] - features[2]).abs().max() > 0.1


def test_boxes_that_lie_outside_pool_zeros(narrow, pyramid):
    rois = to_rois([torch.tensor([[1.5, 1.5, 2.0, 2.0]])], (224, 224))
    for level in pyramid:
        assert narrow.region_encoder.pooler.pool(level[:1], rois, 224).abs().max() == 0
