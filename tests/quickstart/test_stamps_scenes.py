"""Layouts keep their promises, and boxes are where the pixels are."""

import os
import signal

import numpy as np
import pytest

from gpt4roi.errors import InputError
from quickstart import library, scenes, shapes

STAMPS = shapes.draw_stamps()
BACKGROUNDS = shapes.draw_backgrounds(("rocket", "brick"))


def deal(seed, stamps, allowed, number=1):
    return scenes.deal(np.random.default_rng(seed), scenes.captions_to_stamps(stamps, allowed), number)


def lay_out(seed, size=256, stamps=STAMPS):
    chosen = deal(seed, stamps, range(len(stamps)))[0]
    return scenes.lay_out(np.random.default_rng(seed), f"{seed}", size, stamps, chosen, BACKGROUNDS)


def shared(a, b):
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


@pytest.mark.parametrize("size", [256, 384])
def test_boxes_lie_inside_are_large_enough_and_hide_little_of_each_other(size):
    for seed in range(60):
        boxes = [placed.box for placed in lay_out(seed, size).objects]
        for i, (x1, y1, x2, y2) in enumerate(boxes):
            assert 0 <= x1 < x2 <= size and 0 <= y1 < y2 <= size
            assert min(x2 - x1, y2 - y1) >= 24 * size / 256
            covered = sum(shared(boxes[i], other) for j, other in enumerate(boxes) if j != i)
            assert covered <= 0.15 * (x2 - x1) * (y2 - y1)


def test_scenes_hold_three_four_or_five_stamps_about_equally_often():
    counts = np.bincount([len(hand) for hand in deal(0, STAMPS, range(len(STAMPS)), 300)])
    assert len(counts) == 6 and counts[:3].sum() == 0
    assert counts[3:].min() > 75


def test_no_scene_shows_two_stamps_of_one_caption():
    twice = [*STAMPS[:6], *STAMPS[:6]]
    assert scenes.captions_to_stamps(twice, range(12))[0] == [0, 6]
    for hand in deal(0, twice, range(12), 200):
        captions = [twice[stamp].caption for stamp in hand]
        assert len(set(captions)) == len(captions)


def test_every_allowed_stamp_and_no_other_comes_equally_often():
    dealt = np.bincount([stamp for hand in deal(0, STAMPS, range(10, 20), 100) for stamp in hand], minlength=20)
    assert dealt[:10].sum() == 0
    assert dealt[10:].max() - dealt[10:].min() <= 2


def test_centres_of_pairs_lie_at_near_and_far_distances():
    distances = []
    for seed in range(150):
        boxes = np.array([placed.box for placed in lay_out(seed).objects], dtype=float)
        x = (boxes[:, 0] + boxes[:, 2]) / 2
        distances += [abs(a - b) for i, a in enumerate(x) for b in x[:i]]
    inside, _ = np.histogram(distances, [24, 48, 80, 120, 256])
    assert inside.min() / len(distances) > 0.1


@pytest.mark.heavy
def test_a_box_is_the_tight_bound_of_the_pixels_that_its_stamp_changes():
    for seed in range(10):
        scene = lay_out(seed)
        empty = np.asarray(scenes.paint_background(scene.background, BACKGROUNDS, 256)).astype(int)
        for placed in scene.objects:
            alone = scenes.Scene("x", 256, scene.background, (placed,))
            changed = np.abs(np.asarray(scenes.compose(alone, STAMPS, BACKGROUNDS)) - empty).max(axis=2) > 8
            rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
            found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert np.abs(found - placed.box).max() <= 2


def test_a_scene_is_the_same_for_the_same_seed_and_another_for_another():
    assert lay_out(3) == lay_out(3)
    first, again, other = (scenes.compose(lay_out(seed), STAMPS, BACKGROUNDS).tobytes() for seed in (3, 3, 4))
    assert first == again != other


def test_a_small_file_is_not_enlarged_beyond_twice_its_size():
    small = library.Stamp("s", "s", "a small thing", STAMPS[0].image.resize((40, 40)))
    stamps = [small, *STAMPS[1:5]]
    for seed in range(40):
        scene = lay_out(seed, stamps=stamps)
        for placed in scene.objects:
            if placed.stamp == 0:
                assert placed.box[2] - placed.box[0] <= 80


@pytest.mark.heavy
def test_two_processes_write_the_same_images_as_one(tmp_path):
    laid = [lay_out(seed) for seed in range(20)]
    assert list(scenes.write_images(laid, STAMPS, BACKGROUNDS, tmp_path / "one")) == list(range(20))
    assert list(scenes.write_images(laid, STAMPS, BACKGROUNDS, tmp_path / "two", workers=2)) == list(range(20))
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_worker_that_is_killed_ends_the_job_with_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "compose", lambda *_: os.kill(os.getpid(), signal.SIGKILL))

    with pytest.raises(InputError, match=r"a process that composed images was killed; .* try --workers 1"):
        list(scenes.write_images([lay_out(seed) for seed in range(20)], STAMPS, BACKGROUNDS, tmp_path, workers=2))
