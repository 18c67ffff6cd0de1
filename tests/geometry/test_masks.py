"""Masks of every form become the box around them."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from gpt4roi.errors import InputError
from gpt4roi.geometry.masks import size_of, size_of_runs, to_box, to_boxes, to_pixels, to_runs


def blob(seed, height=24, width=36):
    """A random mask that is neither empty nor convex, and its box by looking at every pixel."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=np.uint8)
    for _ in range(rng.integers(1, 4)):
        y, x = rng.integers(0, height - 1), rng.integers(0, width - 1)
        mask[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = 1
    pixels = [(x, y) for y in range(height) for x in range(width) if mask[y, x]]
    xs, ys = zip(*pixels, strict=True)
    return mask, [min(xs), min(ys), max(xs) + 1, max(ys) + 1]


def uncompressed(mask):
    """COCO's run lengths of a mask, down the columns, beginning with those outside."""
    runs, value, count = [], 0, 0
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != value:
            runs, value, count = [*runs, count], pixel, 0
        count += 1
    return {"size": list(mask.shape), "counts": [*runs, count]}


@pytest.mark.parametrize("seed", range(20))
def test_array_run_lengths_and_compressed_text_give_the_same_box(seed):
    mask, expected = blob(seed)
    packed = coco.encode(np.asfortranarray(mask))
    forms = [
        mask,
        mask.astype(bool),
        Image.fromarray(mask * 255),
        uncompressed(mask),
        packed,
        {"size": packed["size"], "counts": packed["counts"].decode()},
    ]
    assert to_boxes(forms).tolist() == [expected] * len(forms)


def test_polygons_reach_to_their_outermost_corners():
    expected = [1.5, 2, 9, 8.25]
    assert to_box([[1.5, 2, 9, 3, 4, 8.25]]).tolist() == expected
    assert to_box([1.5, 2, 9, 3, 4, 8.25]).tolist() == expected
    assert to_box([[[1.5, 2], [9, 3], [4, 8.25]]]).tolist() == expected
    assert to_box([[1.5, 2], [9, 3], [4, 8.25]]).tolist() == expected
    assert to_box([np.array([1.5, 2]), np.array([9, 3]), np.array([4, 8.25])]).tolist() == expected
    assert to_box([[1.5, 2, 3, 3, 3, 4], [9, 3, 4, 8.25, 5, 5]]).tolist() == expected


def test_the_size_a_mask_was_made_for_is_told_where_it_is_known():
    assert size_of({"size": [4, 6], "counts": [24]}) == (4, 6)
    assert size_of(np.zeros((4, 6))) == (4, 6)
    assert size_of(Image.new("L", (6, 4))) == (4, 6)
    assert size_of([[0, 0, 1, 0, 1, 1]]) is None


def test_no_masks_are_no_boxes():
    assert to_boxes([]).shape == (0, 4)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((3, 4)), "the mask is empty"),
        ({"size": [3, 4], "counts": [12]}, "the mask is empty"),
        ([], "the mask is empty"),
        (np.zeros((3, 4, 3)), r"must be an array \[H, W\], got shape \[3, 4, 3\]"),
        ({"size": [3, 4], "counts": [5, 2]}, "counts sum to 7 but height x width is 3 x 4 = 12"),
        ({"size": [3, 4], "counts": [-1, 13]}, "counts must be text or a list of whole numbers"),
        ({"size": [3, 4], "counts": [0.5, 11.5]}, "counts must be text or a list of whole numbers"),
        ({"size": [3, 4]}, "counts must be text or a list of whole numbers, got None"),
        ({"size": [0, 4], "counts": []}, r"size \[height, width\] in pixels, got \[0, 4\]"),
        ({"size": "34", "counts": [12]}, r"size \[height, width\] in pixels, got '34'"),
        ({"size": [3, 10**9], "counts": [12]}, r"size \[height, width\]"),
        ({"counts": [12]}, r"size \[height, width\] in pixels, got None"),
        ({"size": [3, 4], "counts": "nonsense"}, "compressed run lengths|counts sum to"),
        ({"size": [3, 4], "counts": "\x00\x01"}, "not COCO's compressed run lengths"),
        ({"size": [3, 4], "counts": "o" * 40}, "not COCO's compressed run lengths"),
        ({"size": [3, 4], "counts": "\ud83d"}, "counts are not COCO's|counts sum to"),
        ([[1, 2, 3, 4, 5, 1e300]], "a polygon needs three corners or more"),
        ([[1, 2, 3, 4]], "a polygon needs three corners or more"),
        ([[1, 2, 3, 4, 5, float("nan")]], "a polygon needs three corners or more"),
        ([["a", "b", "c", "d", "e", "f"]], "a polygon needs three corners or more"),
        ([[1, 2, 3, 4, 5, 6], "x"], "a polygon needs three corners or more"),
        ("polygon", "a mask must be an array"),
        (7, "a mask must be an array"),
        (None, "a mask must be an array"),
    ],
)  # fmt: skip
def test_what_is_no_mask_is_refused_with_its_number_and_place(mask, message):
    with pytest.raises(InputError, match=message) as caught:
        to_boxes([np.ones((2, 2)), mask], where=" in train.jsonl#3")
    assert "mask 2 in train.jsonl#3" in str(caught.value)


def test_damaged_compressed_text_never_gives_a_box_beyond_the_image():
    text = coco.encode(np.asfortranarray(blob(3)[0]))["counts"].decode()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        letters = list(text)
        letters[rng.integers(len(letters))] = chr(rng.integers(32, 127))
        try:
            box = to_box({"size": [24, 36], "counts": "".join(letters)})
        except InputError:
            refused += 1
        else:
            assert (box >= 0).all() and (box <= [36, 24, 36, 24]).all() and (box[2:] > box[:2]).all()
    assert refused > 200


def test_a_list_of_run_lengths_is_one_mask_around_all_of_them():
    first, second = ({"size": [4.0, 6], "counts": counts} for counts in ([0, 1, 23], [22.0, 2]))
    assert to_box([first]).tolist() == [0, 0, 1, 1]
    assert to_box([first, second]).tolist() == [0, 0, 6, 4]
    assert size_of([first, second]) == size_of_runs([None, [first]]) == (4, 6)


@pytest.mark.parametrize("value", [0.3, 0.001])
def test_a_soft_mask_that_is_nowhere_likely_is_empty(value):
    mask = np.zeros((4, 6), np.float32)
    mask[1:3, 2:4] = value
    with pytest.raises(InputError, match="the mask is empty"):
        to_box(mask)
    assert to_box(mask / mask.max()).tolist() == [2, 1, 4, 3]


def test_polygons_and_run_lengths_become_the_pixels_of_an_image_of_any_size():
    triangle = [[0.0, 0.0, 40.0, 0.0, 0.0, 20.0]]
    small, large = to_pixels(triangle, (20, 40)), to_pixels(triangle, (40, 80), drawn_on=(20, 40))

    assert small.shape == (20, 40) and small.mean() == pytest.approx(0.5, abs=0.05)
    assert large.shape == (40, 80) and large[2, 2] and not large[38, 78]
    assert large.mean() == pytest.approx(0.5, abs=0.03)
    assert np.array_equal(to_pixels(to_runs(small), (40, 80)), small.repeat(2, 0).repeat(2, 1))
