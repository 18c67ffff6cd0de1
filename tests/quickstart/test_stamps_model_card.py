"""The quickstart's model card says of each model what it can and cannot do, and the page reads it there."""

from __future__ import annotations

import json

from gpt4roi.models.model_card import limitations as shown
from quickstart.model_card import write_card


def test_the_card_says_what_a_model_with_and_one_without_a_classifier_can_do(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    write_card(tmp_path)
    assert shown(tmp_path).startswith(
        "It names the drawings and cut-outs that it was trained on, no photographs, and says"
    )
    assert "photographs that" not in (tmp_path / "README.md").read_text()
    (tmp_path / "config.json").write_text(json.dumps({"class_names": ["a cat"] * 1000}))
    write_card(tmp_path)
    assert shown(tmp_path).startswith(
        "It names what a box holds, among 1,000 kinds of animals and things, and says which"
    )
    assert shown(tmp_path).endswith("holds no conversation: such answers mean nothing.")
    assert "boxes on photographs that the tower's own classifier named" in (tmp_path / "README.md").read_text()
