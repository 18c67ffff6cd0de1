"""Model cards: every folder of weights that is written has one, and no user's README.md is overwritten."""

from __future__ import annotations

from small_weights import base_and_our_delta
from tiny import tiny_model

from gpt4roi.checkpoint.convert import plan_convert
from gpt4roi.checkpoint.delta import plan_apply
from gpt4roi.models.model_card import limitations


def test_a_saved_model_has_a_card_that_says_what_it_is_and_how_to_open_it(tmp_path):
    tiny_model("pyramid").save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n# Written by gpt4roi") and "library_name: gpt4roi" in card
    for part in ("2 layers, width 32", 'RegionChat.from_pretrained("FOLDER")', "gpt4roi describe", "## Licence"):
        assert part in card
    assert str(tmp_path) not in card


def test_saving_again_renews_the_card_and_leaves_the_user_s(tmp_path):
    model = tiny_model("pyramid")
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text(card.replace("Licence", "License"))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == card
    (tmp_path / "README.md").write_text("# Mine\n")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


def test_the_limitations_of_a_model_are_the_paragraph_below_their_heading(tmp_path):
    assert limitations(tmp_path) == ""
    tiny_model("pyramid").save_pretrained(tmp_path)
    assert limitations(tmp_path) == ""
    card = "# A model\n\nIt answers.\n\n## Limitations\n\nIt names\nthings. It reads no text.\n\nMore.\n\n## Licence\n"
    (tmp_path / "README.md").write_text(card)
    assert limitations(tmp_path) == "It names things. It reads no text."
    (tmp_path / "README.md").write_text("## Limitations\n\n## Licence\n\nNone.\n")
    assert limitations(tmp_path) == ""


def test_a_delta_its_result_and_a_conversion_have_cards_of_their_kind(tmp_path):
    base, delta = base_and_our_delta(tmp_path)
    plan_apply(base, delta, tmp_path / "out").write()
    plan_convert(tmp_path / "out", tmp_path / "original", to="original").write()
    cards = [(folder / "README.md").read_text() for folder in (delta, tmp_path / "out", tmp_path / "original")]
    assert "# GPT4RoI weight delta" in cards[0] and "gpt4roi apply-delta --base" in cards[0]
    assert "# GPT4RoI model" in cards[1] and "(`hf`)" in cards[1]
    assert "(`original`)" in cards[2] and "RegionChat" in cards[2]


def test_replacing_a_folder_carries_the_user_s_readme_over(tmp_path):
    base, delta = base_and_our_delta(tmp_path)
    plan_apply(base, delta, tmp_path / "out").write()
    (tmp_path / "out" / "README.md").write_text("# Mine\n")
    plan_apply(base, delta, tmp_path / "out", overwrite=True).write()
    assert (tmp_path / "out" / "README.md").read_text() == "# Mine\n"
