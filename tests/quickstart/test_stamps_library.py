"""Captions cleaned, stamps cropped and chosen, shapes drawn."""

import numpy as np
import pytest
from PIL import Image

from gpt4roi.errors import InputError
from quickstart import library, shapes


@pytest.mark.parametrize(
    "line, caption",
    [
        ("An owl.", "an owl"),
        ("An albino peahen (a female peafowl, or peacock).", "an albino peahen"),
        ("A “Granny Smith” apple.", "a Granny Smith apple"),
        ("A plumber’s wrench.", "a plumber's wrench"),
        ("A ripe, red tomato!", "a ripe, red tomato"),
        ("A spiny lobster, from the Hawaiian islands.", "a spiny lobster"),
        ("A UK post box. Put your letter in here!", "a UK post box"),
        ("An hippopotamus.", "a hippopotamus"),
        ("Hibiscus", "hibiscus"),
        ("Edward Bear.", "Edward Bear"),
        ("Eat your broccoli!", None),
        ("Boom!!!", None),
        ("A hoverfly resembles a honeybee drone.", None),
        ("Mars—the red planet. It’s just beyond earth.", None),
        ("A very long description of a thing that nobody would type", None),
        ("", None),
    ],
)
def test_a_description_becomes_a_short_noun_phrase_or_is_left_out(line, caption):
    assert library.clean_caption(line) == caption


def cutout(width, height, opaque):
    """Draws a transparent image with one opaque rectangle, given as (x1, y1, x2, y2)."""
    image = Image.new("RGBA", (width, height), (200, 30, 30, 0))
    image.paste((200, 30, 30, 255), opaque)
    return image


def test_a_stamp_is_cropped_to_its_opaque_part_and_kept_no_larger_than_needed():
    cropped = library.crop_to_opaque(cutout(500, 400, (100, 50, 484, 242)))
    assert cropped.size == (192, 96)
    assert np.asarray(cropped.getchannel("A")).min() == 255


def test_an_image_that_shows_nothing_has_no_crop():
    assert library.crop_to_opaque(Image.new("RGBA", (50, 50))) is None


def write_stamp(folder, name, caption, image):
    path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    path.with_suffix(".txt").write_text(f"{caption}\nfr=.un objet\n", encoding="utf-8")


def test_stamps_that_are_small_thin_faint_symbols_or_unnamed_are_left_out(tmp_path):
    good = cutout(80, 80, (10, 10, 70, 60))
    for number in range(50):
        write_stamp(tmp_path, f"animals/a{number:02d}", f"A beast {number}.", good)
    write_stamp(tmp_path, "symbols/a", "A letter.", good)
    write_stamp(tmp_path, "animals/cartoon/b", "A cartoon.", good)
    write_stamp(tmp_path, "animals/small", "A small one.", cutout(80, 80, (10, 10, 70, 49)))
    write_stamp(tmp_path, "animals/thin", "A thin one.", cutout(300, 80, (0, 0, 250, 45)))
    write_stamp(tmp_path, "animals/told", "You can see it!", good)
    write_stamp(tmp_path, "town/roadsigns/arrow", "“Arrow”.", good)
    faint = good.copy()
    faint.putalpha(faint.getchannel("A").point(lambda alpha: alpha // 7))
    write_stamp(tmp_path, "animals/faint", "A faint one.", faint)
    stamps = library.load_stamps(tmp_path)
    assert [stamp.caption for stamp in stamps] == [f"a beast {number}" for number in range(50)]
    assert (stamps[0].name, stamps[0].kind, stamps[0].image.size) == ("animals/a00", "animals", (60, 50))


def test_a_folder_without_stamps_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"0 usable stamps under .*, expected some 340"):
        library.load_stamps(tmp_path)


def test_a_stamp_that_does_not_open_is_named(tmp_path):
    write_stamp(tmp_path, "animals/cut", "A beast.", cutout(80, 80, (10, 10, 70, 60)))
    path = tmp_path / "animals/cut.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"animals/cut\.png: the stamp does not open .*; delete .* and run again"):
        library.load_stamps(tmp_path)


def test_a_missing_photograph_is_named(tmp_path):
    with pytest.raises(InputError, match="the photograph chelsea is missing"):
        library.load_photographs(tmp_path, ["chelsea"])


def test_no_photograph_serves_both_training_and_held_out_scenes():
    assert not set(library.TRAIN_PHOTOGRAPHS) & set(library.HELD_OUT_PHOTOGRAPHS)


@pytest.mark.heavy
def test_drawn_shapes_have_ninety_captions_and_fill_their_crops():
    stamps = shapes.draw_stamps()
    assert len({stamp.caption for stamp in stamps}) == len(stamps) == 90
    assert stamps[0].caption == "a red circle"
    assert "an orange star" in {stamp.caption for stamp in stamps}
    for stamp in stamps:
        alpha = np.asarray(stamp.image.getchannel("A")) > library.ALPHA_THRESHOLD
        assert alpha.any(axis=1)[[0, -1]].all() and alpha.any(axis=0)[[0, -1]].all()


def test_a_drawn_background_depends_on_its_name_alone():
    first, second = shapes.draw_backgrounds(("rocket", "brick")), shapes.draw_backgrounds(("brick",))
    assert first[1].image.tobytes() == second[0].image.tobytes() != first[0].image.tobytes()
