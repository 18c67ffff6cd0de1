"""examples/lmms_eval_regions.py runs under lmms-eval's harness, where that is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from PIL import Image
from tiny import tiny_model, tiny_processor

EXAMPLE = Path(__file__).parents[2] / "examples" / "lmms_eval_regions.py"


@pytest.mark.slow
def test_both_tasks_are_answered_by_a_model_and_scored(tmp_path):
    pytest.importorskip("lmms_eval")
    model = tiny_model("pyramid")
    model.save_pretrained(tmp_path / "model")
    tiny_processor(model.config).save_pretrained(tmp_path / "model")
    Image.new("RGB", (96, 64), "white").save(tmp_path / "1.jpg")
    said = ("What is <region1>?", "a dog", "Is <region1> a dog?", "yes", "Is <region1> a cat?", "no")
    line = {"image": "1.jpg", "boxes": [[2, 3, 40, 50]], "independent": True}
    line["conversations"] = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(said)]
    (tmp_path / "test.jsonl").write_text(json.dumps(line))
    spec = importlib.util.spec_from_file_location("lmms_eval_regions", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    figures = example.main(str(tmp_path / "model"), str(tmp_path / "test.jsonl"))

    assert set(figures) == {"region_captions", "region_yes_no"}
    assert {name: figures["region_captions"][f"{name},none"] for name in ("right", "word_overlap")}
    assert 0 <= figures["region_yes_no"]["right,none"] <= 1
