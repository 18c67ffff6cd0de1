"""Regions with masks: their rasters, what the encoder makes of them, their way through processor, batch and chat."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_region_chat import BOXES, QUESTION, chat_with, make_image
from tiny import tiny_config, tiny_model, tiny_processor

from gpt4roi import RegionChat, RegionSample, Turn
from gpt4roi.checkpoint.convert import plan_convert
from gpt4roi.checkpoint.loading import load_processor
from gpt4roi.errors import InputError
from gpt4roi.geometry.masks import to_raster
from gpt4roi.models.kernels.roi_align import pool_masks
from gpt4roi.processing.user_input import validate_regions
from gpt4roi.structures import MASK_SIZE, Augmentation, Regions
from gpt4roi.train.sanity_checks import check_fit

KINDS = pytest.mark.parametrize("kind", ["clip", "pyramid"])
SIZE = (64, 96)
BOX = [10.0, 20.0, 66.0, 48.0]
INPUTS = ("input_ids", "attention_mask", "pixel_values", "boxes", "masks")


def pixels(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


def left_half() -> np.ndarray:
    """Covers BOX's left half, and a pixel of its last column, which makes BOX the box around it."""
    mask = pixels(10, 20, 38, 48)
    mask[47, 65] = True
    return mask


def sensitive(kind: str, **changes: object) -> RegionChat:
    """A chat of a model that reads masks, and whose answers depend on them."""
    chat = chat_with(kind, region_shape="mask", **changes)
    encoder = chat.model.region_encoder
    with torch.no_grad():
        torch.nn.init.normal_(
            getattr(encoder, "pooler", encoder).shape_embedding.weight, generator=torch.Generator().manual_seed(1)
        )
    return chat


# Rasters


def test_a_raster_holds_the_share_of_each_cell_that_is_covered():
    raster = to_raster(pixels(10, 20, 38, 48), BOX)
    assert raster.shape == (MASK_SIZE, MASK_SIZE)
    assert (raster[:, :14] == 1).all() and not raster[:, 14:].any()
    # Cells are two pixels wide and one high: an odd number of columns covers half of a cell.
    assert to_raster(pixels(10, 20, 11, 48), BOX)[:, 0].tolist() == [0.5] * MASK_SIZE


def test_every_form_of_a_mask_has_the_same_raster():
    mask = pixels(10, 20, 66, 48) & ~pixels(30, 30, 40, 40)
    columns = mask.T.ravel()
    changes = np.flatnonzero(np.diff(np.concatenate([[0], columns, [0]])))
    counts = np.diff(np.concatenate([[0], changes, [columns.size]])).tolist()
    ring = [[[10, 20], [66, 20], [66, 30], [10, 30]], [[10, 40], [66, 40], [66, 48], [10, 48]]]
    sides = [[[10, 30], [30, 30], [30, 40], [10, 40]], [[40, 30], [66, 30], [66, 40], [40, 40]]]
    whole = to_raster(mask, BOX)
    assert np.array_equal(to_raster({"size": list(SIZE), "counts": counts}, BOX), whole)
    np.testing.assert_allclose(to_raster(ring + sides, BOX), whole, atol=0.13)
    assert abs(to_raster(ring + sides, BOX).mean() - whole.mean()) < 0.005


def test_points_and_strokes_are_round_masks_of_a_radius():
    point, stroke = validate_regions([{"point": [50, 30]}, {"stroke": [[20, 20], [60, 20]], "radius": 4}], SIZE), None
    assert point.boxes_px.tolist() == [[48.08, 28.08, 51.92, 31.92], [16, 16, 64, 24]]  # 2 % of 96 pixels
    disc, stroke = point.masks
    assert disc.mean() == pytest.approx(np.pi / 4, abs=0.02) and disc[0, 0] == 0 and disc[14, 14] == 1
    assert stroke[14, 14] == 1 and stroke.mean() == pytest.approx((40 * 8 + np.pi * 16) / (48 * 8), abs=0.02)
    near_border = validate_regions([{"point": [0, 0], "radius": 5}], SIZE)
    assert near_border.boxes_px.tolist() == [[0, 0, 5, 5]]
    with pytest.raises(InputError, match=r"region 2: expected \[x, y\] inside the image.* got \{'point': \[97, 3\]\}"):
        validate_regions([BOX, {"point": [97, 3]}], SIZE)


def test_an_empty_mask_is_refused_at_every_door():
    with pytest.raises(InputError, match="the mask is empty: no pixel lies inside of region 1"):
        validate_regions([np.zeros(SIZE)], SIZE)
    with pytest.raises(InputError, match=r"the mask is empty: no pixel lies inside of region 2 in a\.json#3"):
        empty = np.zeros((MASK_SIZE, MASK_SIZE))
        RegionSample(make_image(), (), [BOX, BOX], masks=(None, empty), source="a.json#3")
    model = tiny_model("clip", region_shape="mask")
    with pytest.raises(InputError, match="image 0 of the batch: mask 2 is empty"):
        masks = torch.stack([torch.ones(28, 28), torch.zeros(28, 28)])
        model.get_region_features(torch.zeros(1, 3, 32, 32), [torch.tensor([[0.0, 0, 1, 1]] * 2)], [masks])


# The encoder


@KINDS
@pytest.mark.parametrize("count", [1, 4])
def test_a_full_mask_is_its_box(kind, count):
    by_mask = sensitive(kind, tokens_per_region=count).model
    by_box = chat_with(kind, tokens_per_region=count).model
    missing, extra = by_box.load_state_dict(by_mask.state_dict(), strict=False)
    assert not missing and len(extra) == 1 and extra[0].endswith("shape_embedding.weight")
    side = by_mask.config.image_size
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    boxes = [torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.3, 0.3, 0.5, 1.0]])]
    with torch.no_grad():
        expected = by_box.get_region_features(image, boxes)
        scale = expected.abs().max()
        for masks in (None, [torch.ones(2, MASK_SIZE, MASK_SIZE)]):
            got = by_mask.get_region_features(image, boxes, masks)
            assert float((got - expected).abs().max() / scale) < 1e-6


@pytest.mark.parametrize("cells", [3, 4, 7, 14])
def test_pooled_cells_count_by_how_much_of_them_is_covered(cells):
    mask = torch.zeros(1, MASK_SIZE, MASK_SIZE)
    edge = MASK_SIZE // cells * 3 // 2  # in the middle of the second cell
    mask[:, :, :edge] = 1
    pooled = pool_masks(mask, cells)[0, 0]
    if cells == 4:
        assert torch.equal(pooled[0], torch.tensor([1, 3 / 7, 0, 0]))
    if cells in (7, 14):
        assert torch.equal(pooled[0], torch.tensor([1.0, 0.5, *[0.0] * (cells - 2)]))
    assert float(pooled.mean()) == pytest.approx(edge / MASK_SIZE, abs=0.01)
    assert torch.allclose(pool_masks(torch.ones(1, MASK_SIZE, MASK_SIZE), cells), torch.ones(1), atol=1e-6)


@KINDS
def test_what_a_mask_leaves_out_does_not_reach_the_region(kind):
    """With one cell for each pixel of the last map, changing the features under the left-out half changes nothing."""
    model = tiny_model(kind, region_shape="mask", **({"roi_output_size": 4} if kind == "pyramid" else {}))
    encoder, side = model.region_encoder, model.config.image_size
    mask = torch.zeros(1, MASK_SIZE, MASK_SIZE)
    mask[:, :, : MASK_SIZE // 2] = 1
    maps = [torch.randn(1, *level.shape[1:]) for level in model.encode_image(torch.randn(1, 3, side, side))[1]]
    box = [torch.tensor([[0.0, 0.0, 1.0, 1.0]])]
    with torch.no_grad():
        if kind == "pyramid":
            pooled = encoder.pool(maps, box)
            changed = pooled.clone()
            changed[..., 2:] += 5
            cells = encoder.mask_cells(box, [mask], 4)
            assert torch.equal(encoder.learned(pooled, cells)[0], encoder.learned(changed, cells)[0])
            assert not torch.equal(encoder.learned(pooled)[0], encoder.learned(changed)[0])
        else:
            one, full = (encoder(maps, box, [rows]) for rows in (mask, torch.ones_like(mask)))
            assert not torch.allclose(one, full, atol=1e-3)


@KINDS
def test_masks_train_the_weights_of_their_shape(kind):
    model = tiny_model(kind, region_shape="mask").train()
    side = model.config.image_size
    raster = torch.from_numpy(to_raster(left_half(), BOX))[None]
    rows = model.get_region_features(torch.randn(1, 3, side, side), [torch.tensor([[0.1, 0.2, 0.7, 0.9]])], [raster])
    rows.square().sum().backward()
    encoder = model.region_encoder
    gradient = getattr(encoder, "pooler", encoder).shape_embedding.weight.grad
    covered = pool_masks(raster, gradient_side(gradient)).flatten()
    assert bool((gradient.abs().sum(0)[covered < 1] > 0).all())
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def gradient_side(gradient: torch.Tensor) -> int:
    return round(gradient.shape[1] ** 0.5)


def test_a_model_of_boxes_refuses_masks():
    model = tiny_model("clip")
    with pytest.raises(InputError, match="the model reads boxes alone"):
        box, mask = torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1, 28, 28)
        model.get_region_features(torch.zeros(1, 3, 32, 32), [box], [mask])


# Processor, batch and chat


def sample(regions: Regions, **changes: object) -> RegionSample:
    turns = (Turn("user", "Is <region2> left of <region1>?"), Turn("assistant", "yes"))
    return RegionSample(make_image(), turns, regions, **changes)


def test_masks_follow_their_boxes_to_the_tokens():
    processor = tiny_processor(tiny_config("pyramid", image_grid_size=2, region_shape="mask"))
    regions = validate_regions([BOX, left_half()], SIZE)
    assert regions.masks[0] is None and regions.boxes_px.tolist() == [BOX, BOX]
    batch = processor([sample(regions), sample(regions[::-1])])
    assert [rows.shape for rows in batch["masks"]] == [(2, 28, 28)] * 2
    assert torch.equal(batch["masks"][0][0], torch.from_numpy(regions.masks[1]))  # the question begins with region2
    assert torch.equal(batch["masks"][0][1], torch.ones(28, 28))
    assert torch.equal(batch["masks"][1], batch["masks"][0].flip(0))


def test_a_flipped_or_clipped_box_has_its_mask_flipped_and_clipped():
    processor = tiny_processor(tiny_config("pyramid", image_grid_size=2, region_shape="mask"))
    regions = validate_regions([left_half()], SIZE)
    one = RegionSample(make_image(), (Turn("user", QUESTION), Turn("assistant", "x")), regions)
    flipped = processor.encode(RegionSample(**{**vars(one), "augmentation": Augmentation(flip=True)}))
    assert np.array_equal(flipped["masks"][0], regions.masks[0][:, ::-1])
    side = processor.image_size
    # The box loses its left half, and with it what the mask covers but for one pixel.
    shift = Augmentation(shift=(-round(38 / 96 * side), 0))
    clipped = processor.encode(RegionSample(**{**vars(one), "augmentation": shift, "image_pipeline": "detection"}))
    assert clipped["boxes"][0, 0] == 0
    assert float(clipped["masks"].mean()) < 0.05 < regions.masks[0].mean()


def test_the_processor_takes_masks_beside_boxes_or_in_their_place():
    processor = tiny_processor(tiny_config("pyramid", image_grid_size=2, region_shape="mask"))
    question = "Is <region1> left of <region2>?"
    both = processor(images=make_image(), text=question, boxes=[BOX, BOX], masks=[None, left_half()])
    alone = processor(images=make_image(), text=question, boxes=[[BOX, left_half()]])
    stacked = processor(images=make_image(), text=question, masks=np.stack([pixels(10, 20, 66, 48), left_half()]))
    for batch in (alone, stacked):
        assert torch.equal(batch["boxes"][0], both["boxes"][0]) and torch.equal(batch["masks"][0], both["masks"][0])
    assert both["masks"][0].mean((1, 2)).tolist() == pytest.approx([1, 0.5006], abs=1e-3)
    with pytest.raises(InputError, match="give as many masks as boxes"):
        processor(images=make_image(), text=question, boxes=[BOX, BOX], masks=[left_half()])


@pytest.mark.heavy
@KINDS
@pytest.mark.parametrize("count", [1, 4])
def test_permuted_masks_permute_the_answers_and_a_batch_changes_none(kind, count):
    chat = sensitive(kind, tokens_per_region=count)
    regions = [BOX, left_half(), pixels(10, 20, 66, 48) & ~left_half(), BOXES[0], {"stroke": [[20, 30], [60, 40]]}]
    order = [3, 0, 4, 1, 2]
    straight = chat.describe(make_image(), regions, QUESTION, max_new_tokens=12, batch_size=3)
    permuted = chat.describe(make_image(), [regions[one] for one in order], QUESTION, max_new_tokens=12, batch_size=4)
    assert permuted == [straight[one] for one in order]
    assert straight == [plain_answer(chat, one) for one in regions]
    assert len({straight[0], straight[1], straight[2]}) > 1  # of one box


def plain_answer(chat: RegionChat, region: object) -> str:
    """One prompt through the model's own generate."""
    regions = validate_regions([region], SIZE)
    batch = chat.processor([RegionSample(make_image(), (Turn("user", QUESTION),), regions)], generation=True)
    ids = chat.model.generate(**{name: batch[name] for name in INPUTS}, max_new_tokens=12, do_sample=False)
    return chat.processor.decode(ids[0, batch["input_ids"].shape[1] :])


def test_a_conversation_keeps_the_masks_of_its_regions():
    chat = sensitive("pyramid", image=True)
    chat.ask("What is <region1>?", [left_half()], max_new_tokens=4)
    chat.ask("And <region2>?", [BOX], max_new_tokens=4)
    assert chat.regions.masks[1] is None and np.array_equal(chat.regions.masks[0], to_raster(left_half(), BOX))
    shares = chat.classify([left_half(), BOX], ["a cat", "a dog"])
    assert shares[0] != shares[1]


def test_a_model_of_boxes_gets_the_box_around_a_mask_and_says_so_once(caplog):
    chat = chat_with("pyramid")
    asked = chat.describe(make_image(), [left_half(), {"point": [50, 30]}], max_new_tokens=4)
    assert asked == chat.describe(make_image(), [BOX, [48.08, 28.08, 51.92, 31.92]], max_new_tokens=4)
    said = "masks became their bounding boxes: region 1: 10,20,66,48; region 2: 48.08,28.08,51.92,31.92"
    assert caplog.messages == [said]
    caplog.clear()
    regions = validate_regions([left_half(), BOX], SIZE)
    batch = chat.processor([sample(regions), sample(regions)])
    assert "masks" not in batch and chat.processor.n_masks_left_out == 2
    assert caplog.messages == ["masks are read as their bounding boxes: the model's region_shape is 'box'"]


@KINDS
def test_the_shape_is_saved_with_model_and_processor_and_must_agree(kind, tmp_path):
    chat = sensitive(kind)
    chat.model.save_pretrained(tmp_path)
    chat.processor.save_pretrained(tmp_path)
    opened = RegionChat.from_pretrained(tmp_path, dtype="float32")
    question = [left_half(), BOX]
    before, after = (one.describe(make_image(), question, max_new_tokens=8) for one in (chat, opened))
    assert before == after
    assert load_processor(tmp_path).region_shape == "mask"
    with pytest.raises(InputError, match="region_shape is box for the processor and mask for the model"):
        check_fit(tiny_processor(tiny_config(kind, image_seq_length=chat.processor.image_seq_length)), opened.model)
    if kind == "clip":
        with pytest.raises(InputError, match="region_shape is 'mask' and not 'box'"):
            plan_convert(tmp_path, tmp_path / "out", "original")


def test_another_shape_is_refused():
    with pytest.raises(InputError, match="region_shape is 'polygon', expected one of box, mask"):
        tiny_config("clip", region_shape="polygon")
