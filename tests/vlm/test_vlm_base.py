"""Every family of vision-language models, tiny and random: what regions on it must hold to."""

from __future__ import annotations

import copy
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vlms import BUILDERS, COMMON, noise_image, tiny_vlm
from transformers import AutoModelForImageTextToText
from transformers.vision_utils import get_vision_window_index

from gpt4roi.errors import InputError
from gpt4roi.models.kernels.roi_align import roi_align
from gpt4roi.models.vlm_base import add_regions, open_regions_vlm
from gpt4roi.models.vlm_families import TOWERS, choose_views, join_tiles, require_known_family, with_frames
from gpt4roi.processing.batch import RegionCollator
from gpt4roi.structures import RegionSample, Turn

SIZES = [(60, 90), (120, 64)]
BOXES = np.array([[3, 5, 40, 50], [30, 20, 60, 55]], dtype=float)
QUESTION = "What are <region1> and <region2>?"

families = pytest.mark.parametrize(
    "vlm", [name if name in COMMON else pytest.param(name, marks=pytest.mark.slow) for name in BUILDERS], indirect=True
)


@pytest.fixture
def vlm(request):
    return tiny_vlm(request.param)


def sample(size, seed=0, question=QUESTION, boxes=BOXES, answer="a b"):
    turns = (Turn("user", question), Turn("assistant", answer))
    return RegionSample(noise_image(*size, seed), turns, boxes, image_pipeline="detection")


def text_sample():
    return RegionSample(None, (Turn("user", "Hello?"), Turn("assistant", "yes")), np.zeros((0, 4)))


INFO = ("n_dropped_rounds", "sources", "n_tokens", "n_supervised", "labels")


def batch_of(vlm, *samples, labels=False):
    features = [vlm.processor.encode(one) for one in samples]
    batch = RegionCollator(vlm.processor.tokenizer.pad_token_id)(features)
    return {name: value for name, value in batch.items() if name not in INFO or (labels and name == "labels")}


def prompts(vlm, *samples):
    """A batch to generate from, padded on the left."""
    return dict(vlm.processor([replace(one, turns=one.turns[:1]) for one in samples], generation=True))


def two(vlm, **changes):
    return [sample(size, seed, **changes) for seed, size in enumerate(SIZES)]


def without_regions(vlm, batch):
    given = {name: value for name, value in batch.items() if name not in ("boxes", "view_frames")}
    return vlm.model.token_types(batch["input_ids"], {}) | given


@torch.no_grad()
def features(vlm, batch):
    ours = ("input_ids", "attention_mask", "labels")
    return vlm.model.get_region_features(**{name: value for name, value in batch.items() if name not in ours})


GREEDY = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.mark.heavy
@families
@torch.no_grad()
def test_without_boxes_logits_and_tokens_are_the_bases_to_the_bit(vlm):
    batch = without_regions(vlm, prompts(vlm, *two(vlm, question="What is it?", boxes=np.zeros((0, 4)))))
    assert torch.equal(vlm.base(**batch).logits, vlm.model(**batch).logits)
    assert torch.equal(vlm.base.generate(**batch, **GREEDY), vlm.model.generate(**batch, **GREEDY))
    text = {"input_ids": torch.arange(40, 60)[None]}
    assert torch.equal(vlm.base(**text).logits, vlm.model(**text).logits)
    own = {name for name in vlm.model.state_dict() if not name.startswith("region_encoder.")}
    assert own == set(vlm.base.state_dict())


@families
@torch.no_grad()
def test_a_prompt_is_what_the_bases_own_processor_writes(vlm):
    image = noise_image(60, 90)
    question = RegionSample(image, (Turn("user", "What is it?"),), np.zeros((0, 4)), image_pipeline="detection")
    ours = vlm.processor.encode(question, generation=True)
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    if vlm.name == "paligemma":
        own = vlm.processor.base(text="<image>What is it?", images=image, return_tensors="pt")
    else:
        written = vlm.processor.base.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        own = vlm.processor.base(text=[written], images=[[image]], return_tensors="pt")
    assert ours["input_ids"].tolist() == own["input_ids"][0].tolist()
    assert torch.equal(ours["pixel_values"], own["pixel_values"])


@families
def test_permuted_boxes_permute_their_embeddings(vlm):
    batch = batch_of(vlm, *two(vlm))
    rows = features(vlm, batch).unflatten(0, (2, 2))
    turned = features(vlm, batch | {"boxes": [rows.flip(0) for rows in batch["boxes"]]}).unflatten(0, (2, 2))
    assert (rows.flip(1) - turned).abs().max() < 1e-5
    assert (rows - turned).abs().max() > 1e-2


@families
def test_gradients_reach_the_region_encoder_alone_where_the_base_is_frozen(vlm):
    model = copy.deepcopy(vlm.model).train().requires_grad_(False)
    model.region_encoder.requires_grad_(True)
    model(**batch_of(vlm, *two(vlm), labels=True), logits_at_targets_only=True).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("region_encoder."):
            assert parameter.grad is not None and parameter.grad.any(), name
        else:
            assert parameter.grad is None, name
    model.zero_grad()
    model(**batch_of(vlm, text_sample(), labels=True), logits_at_targets_only=True).loss.backward()
    assert all(not parameter.grad.any() for parameter in model.region_encoder.parameters())


@families
@torch.no_grad()
def test_tokens_with_a_cache_are_those_without(vlm):
    batch = prompts(vlm, *two(vlm))
    marks = list(vlm.processor.base.tokenizer.get_added_vocab().values())
    options = GREEDY | {"suppress_tokens": marks}  # an image's token of its own accord would end a base's run
    cached = vlm.model.generate(**batch, **options)
    assert torch.equal(cached, vlm.model.generate(**batch, **options, use_cache=False))
    beams = vlm.model.generate(**batch, **options, num_beams=2, num_return_sequences=2)
    assert len(beams) == 4
    with pytest.raises(InputError, match="4 <bbox> tokens in the batch but 2 boxes"):
        vlm.model(**batch | {"boxes": [rows[:1] for rows in batch["boxes"]]})
    other = batch | {"boxes": [rows.flip(0) / 2 for rows in batch["boxes"]]}
    assert not torch.equal(vlm.model(**batch).logits, vlm.model(**other).logits)


@families
@torch.no_grad()
def test_a_batch_of_sizes_and_numbers_of_boxes_is_as_each_sample_alone(vlm):
    one, other = sample(SIZES[0]), sample(SIZES[1], 1, "And <region1>?", BOXES[:1])
    together = batch_of(vlm, one, other, text_sample())
    logits = vlm.model(**together).logits
    for row, alone in enumerate((one, other, text_sample())):
        single = batch_of(vlm, alone)
        length = single["input_ids"].shape[1]
        assert (vlm.model(**single).logits[0] - logits[row, :length]).abs().max() < 1e-3


@pytest.mark.heavy
@families
@torch.no_grad()
def test_a_saved_folder_is_the_bases_with_a_region_encoder_beside_it(vlm, tmp_path):
    vlm.model.save_pretrained(tmp_path)
    batch = batch_of(vlm, *two(vlm))
    opened = open_regions_vlm(tmp_path).eval()
    assert torch.equal(opened(**batch).logits, vlm.model(**batch).logits)
    base, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert type(base) is type(vlm.base) and not info["missing_keys"] and not info["unexpected_keys"]
    plain = without_regions(vlm, batch)
    assert torch.equal(base.eval()(**plain).logits, vlm.base(**plain).logits)


PLACES = ((0.12, 0.2), (0.85, 0.15), (0.5, 0.5), (0.2, 0.85), (0.8, 0.75))


@families
@pytest.mark.parametrize("size", [(60, 90), (120, 64), (40, 200)])
@torch.no_grad()
def test_what_changes_in_a_box_changes_most_in_its_own_cells(vlm, size):
    height, width = size

    def views_of(image):
        inputs = vlm.processor.image_inputs(image)
        ((_, (views,)),) = vlm.model.encode_prepared([inputs])
        (kept,) = vlm.model.region_encoder.pyramid([views])
        assert [view.tiles for view in kept] == [view.tiles for view in join_tiles(views)]
        return join_tiles(views)

    grey = Image.new("RGB", (width, height), (90, 120, 150))
    before = views_of(grey)
    for x, y in PLACES:
        half = max(width * 0.06, 4), max(height * 0.06, 4)
        box = [x * width - half[0], y * height - half[1], x * width + half[0], y * height + half[1]]
        painted = grey.copy()
        painted.paste((255, 0, 0), [round(side) for side in box])
        after = views_of(painted)
        unit = torch.tensor([box]) / torch.tensor([width, height] * 2)
        (number,), ((x1, y1, x2, y2),) = (found.tolist() for found in choose_views(unit, after))
        down, across = after[number].levels[0].shape[1:]
        if x2 <= 0 or y2 <= 0 or x1 >= across or y1 >= down:
            assert vlm.name in ("llava", "vipllava")  # their processors crop the centre
            continue
        change = (after[number].levels[0] - before[number].levels[0]).abs().mean(0)
        row, column = divmod(int(change.argmax()), change.shape[1])
        assert x1 - 1 <= column <= x2 and y1 - 1 <= row <= y2, (box, (row, column), change.shape)


@torch.no_grad()
def test_a_table_without_a_spare_row_grows_by_one_and_the_bases_logits_stay():
    vlm = tiny_vlm("llava")
    grown = copy.deepcopy(vlm.base)
    rows = grown.get_input_embeddings().weight.shape[0]
    add_regions(grown, rows)
    text = {"input_ids": torch.arange(40, 60)[None]}
    assert grown.get_input_embeddings().weight.shape[0] == rows + 1
    assert torch.equal(grown(**text).logits[..., :rows], vlm.base(**text).logits)


def ramp(height, width):
    """Red is x and green is y, from 0 to 255."""
    x, y = (np.arange(width) + 0.5) / width * 255, (np.arange(height) + 0.5) / height * 255
    return Image.fromarray(np.stack([*np.meshgrid(x, y), np.zeros((height, width))], axis=-1).round().astype(np.uint8))


def patch_colours(tower, inputs):
    """What a tower would return whose states are the mean colours of its patches, and its arguments."""
    pixels, patch = inputs["pixel_values"], tower.config.patch_size
    patch = patch if isinstance(patch, int) else patch[0]
    if "image_grid_thw" in inputs:
        colours = pixels.unflatten(1, (3, 2, -1)).mean((2, 3))
        if hasattr(tower, "fullatt_block_indexes"):
            order = get_vision_window_index(inputs["image_grid_thw"], 2, tower.config.window_size, patch)[0]
            colours = colours.unflatten(0, (-1, 4))[order].flatten(0, 1)
        return colours, {"grid_thw": inputs["image_grid_thw"]}
    if "spatial_shapes" in inputs:
        return pixels.unflatten(2, (-1, 3)).mean(2), inputs
    views = pixels.flatten(0, -4)
    colours = torch.nn.functional.avg_pool2d(views, patch).flatten(2).transpose(1, 2)
    packed = {"image_sizes": inputs["image_sizes"]} if tower.config.model_type == "pixtral" else {}
    return colours, {"pixel_values": views} | packed


UNIT_BOXES = torch.tensor([[0.3, 0.3, 0.7, 0.6], [0.25, 0.2, 0.45, 0.5], [0.5, 0.4, 0.8, 0.8]])
CENTERS = torch.tensor([[0.5, 0.45], [0.35, 0.35], [0.65, 0.6]])


@families
@pytest.mark.parametrize("size", [(60, 90), (121, 67), (56, 170)])
def test_boxes_on_a_ramp_pool_the_coordinates_of_their_centers(vlm, size):
    tower = vlm.model.get_encoder("image")
    plain = {"do_rescale": False, "do_normalize": False}
    made = vlm.processor._call_base(ramp(*size), **plain)
    inputs = {name: value.float() if name == "pixel_values" else value for name, value in made.items()}
    colours, call = patch_colours(tower, inputs)
    seen = TOWERS[tower.config.model_type]([colours], tower, call)
    (views,) = with_frames(seen, [vlm.processor.image_layout(*size).frames])
    views = join_tiles(views)
    chosen, cells = choose_views(UNIT_BOXES, views)
    for box, number, center in zip(cells, chosen.tolist(), CENTERS, strict=True):
        roi = torch.cat([torch.zeros(1), box])[None]
        found = roi_align(views[number].levels[0][None], roi, 1, 1.0, 4)[0, :2, 0, 0] / 255
        if vlm.name in ("llava", "vipllava", "llava_padded") and size == (56, 170):
            continue  # a wide image loses its sides, or is not two patches high
        assert (found - center).abs().max() < 0.03, (found, center)


def test_frames_of_a_crop_padding_and_tiles_are_what_the_sizes_say():
    def frames(name, height, width):
        return tiny_vlm(name).processor.image_layout(height, width).frames

    crop = frames("llava", 56, 84)  # the middle 56 of 84 columns
    assert torch.allclose(crop, torch.tensor([[1 / 6, 0, 5 / 6, 1]]), atol=0.01)
    tiles = frames("smolvlm", 112, 168)  # two rows of three tiles, and the whole
    expected = [[x / 3, y / 2, (x + 1) / 3, (y + 1) / 2] for y in range(2) for x in range(3)]
    assert torch.allclose(tiles, torch.tensor([*expected, [0, 0, 1, 1]]), atol=0.01)
    assert torch.equal(frames("qwen2_5_vl", 50, 99), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))


def test_an_unknown_family_is_refused_with_what_is_missing():
    with pytest.raises(InputError, match=r"Blip2Model: model_type 'blip-2' is no family.*known are llava, vipllava"):
        require_known_family("blip-2", "blip_2_vision_model", "Blip2Model")
    with pytest.raises(InputError, match=r"regions on 'lfm2_vl' are not supported: its image processor cuts tiles"):
        require_known_family("lfm2_vl", None, "folder")
    with pytest.raises(InputError, match=r"patches of its vision tower .'hiera'. lie in the image is not known"):
        require_known_family("llava", "hiera", "LlavaForConditionalGeneration")


def test_the_table_of_families_is_made_of_the_reports_of_tests_that_are_there(tmp_path):
    root = Path(__file__).parents[2]
    table = runpy.run_path(str(root / "scripts" / "vlm_table.py"))
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert all(f"def test_{name}" in tests for name in table["COLUMNS"].values())
    cases = [
        f"test_{table['COLUMNS'][title]}[{rest}]"
        for title, rest in (("ramp", "size0-llava"), ("cache, beams", "llava"))
    ]
    (tmp_path / "a.xml").write_text(
        f'<testsuites><testcase name="{cases[0]}"><failure/></testcase><testcase name="{cases[1]}"/></testsuites>'
    )
    assert table["main"]([str(tmp_path / "a.xml")]).splitlines()[-1].split("|")[1:11] == [
        " llava ",
        *["  "] * 4,
        " yes ",
        *["  "] * 3,
        " no ",
    ]
