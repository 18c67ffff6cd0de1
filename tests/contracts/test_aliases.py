"""Contract: every old name in CHANGELOG.md's table for this version still works, as an alias of the new one.

How a row is tried follows from what its left column shows: a dotted `gpt4roi.…` is imported, a `--flag` is looked up in
the parsers of all subcommands; anything else has its own trial below, under its first old name.
"""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from gpt4roi import _MOVED, RegionSample, Turn
from gpt4roi.data.registry import build_mixture
from gpt4roi.data.unified import UnifiedDataset
from scripts.house_report import aliases

ROWS = aliases()
assert ROWS, "CHANGELOG.md has no table of old names"


def codes(cell: str) -> list[str]:
    """Returns what a cell of the table has between back quotes."""
    return re.findall(r"`(.+?)`", cell)


def resolve(dotted: str) -> Any:
    """Imports the longest module of a dotted name and follows the rest as attributes."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(dotted)


def one_object(tmp_path, **fields: Any):
    """Writes a file in the unified format with one object of text alone, and returns its path."""
    talk = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hello."}]
    tasks = {"tasks": ["greeting"], "independent": True}
    (tmp_path / "one.jsonl").write_text(json.dumps({"conversations": talk, **tasks, **fields}), encoding="utf-8")
    return tmp_path / "one.jsonl"


def listed_sample(path, **settings: Any) -> RegionSample:
    """Reads the first sample of a list of data sets that holds one file."""
    mixture = build_mixture([{"type": "unified", "ann_file": str(path), **settings}], 0)
    return mixture.sample(0, np.random.default_rng(0))


def old_key_of_the_pipeline(tmp_path) -> None:
    assert listed_sample(one_object(tmp_path), picture_pipeline="detection").image_pipeline == "detection"
    assert listed_sample(one_object(tmp_path, picture_pipeline="detection")).image_pipeline == "detection"
    turns = (Turn("user", "Hello?"), Turn("assistant", "Hello."))
    assert RegionSample(None, turns, picture_pipeline="detection").image_pipeline == "detection"


def old_names_of_the_pipelines(tmp_path) -> None:
    for old, new in (("bilinear", "detection"), ("bicubic", "dialogue")):
        assert listed_sample(one_object(tmp_path), image_pipeline=old).image_pipeline == new


def old_key_of_the_pairs(tmp_path) -> None:
    for pairs, turns in ((1, 2), (0, 0)):
        assert len(listed_sample(one_object(tmp_path), pairs_per_visit={"greeting": pairs}).turns) == turns
    assert UnifiedDataset(one_object(tmp_path), pairs_per_visit={"greeting": 3}).pairs_per_epoch == {"greeting": 3}


def old_names_of_the_page_api(tmp_path) -> None:
    pytest.importorskip("gradio", reason='pip install "gpt4roi[demo]"')
    from inspect import signature

    from gpt4roi.demo.api import Api

    assert list(signature(Api.set_picture).parameters)[1:] == ["picture", "request"]
    assert Api.conversation_picture  # tests/demo/test_interface.py calls both through gradio_client


def old_options_of_evaluate(tmp_path) -> None:
    from gpt4roi.distributed import DistributedContext
    from gpt4roi.evaluation.evaluate import evaluate
    from gpt4roi.evaluation.items import Source

    benchmark = tmp_path / "benchmark.py"
    benchmark.write_text(
        "import numpy, pathlib\n"
        "from gpt4roi.evaluation.items import Benchmark, Item\n"
        "from gpt4roi.evaluation.predictor import Query\n"
        "from gpt4roi.evaluation.scoring import score_choices\n"
        "query = Query(pathlib.Path(__file__), 'What?', numpy.zeros((0, 4)), choices=('a', 'b'), id='1')\n"
        "item = Item('1', query, ('a',), options=('a', 'b'), label=0)\n"
        "BENCHMARK = Benchmark('One', ('test',), lambda source: [item], score_choices)\n"
    )
    world, source = DistributedContext(), Source(tmp_path)
    metrics = evaluate(
        str(benchmark), lambda queries: ["a"], source, tmp_path / "out", facts={"model": "A"}, world=world
    )
    assert metrics is not None and metrics["model"] == "A" and metrics["summary"]["accuracy (parsed)"] == 1.0


def old_argument_for_few_logits(tmp_path) -> None:
    import torch
    from tiny import tiny_model

    ids = torch.tensor([[1, 40, 41, 42]])
    output = tiny_model()(input_ids=ids, labels=ids, logits_at_labels_only=True)
    assert output.logits.shape[:-1] == (3,)


TRIALS: dict[str, Callable[[Any], None]] = {
    "logits_at_labels_only": old_argument_for_few_logits,
    "picture_pipeline": old_key_of_the_pipeline,
    "bilinear": old_names_of_the_pipelines,
    "/set_picture": old_names_of_the_page_api,
    "pairs_per_visit": old_key_of_the_pairs,
    "facts": old_options_of_evaluate,
}


def option_groups() -> list[set[str]]:
    """Returns the spellings of each flag of each subcommand, those of the training included."""
    from transformers import HfArgumentParser

    from gpt4roi import cli
    from gpt4roi.train.arguments import DataArguments, ModelArguments, RegionArguments, TrainingArguments

    parsers: list[Any] = [HfArgumentParser((ModelArguments, DataArguments, RegionArguments, TrainingArguments))]
    parsers += [cli.build_parser(name) for name in cli.subcommand_names()]
    groups: list[set[str]] = []
    while parsers:
        for action in parsers.pop()._actions:
            groups.append(set(action.option_strings))
            if isinstance(action.choices, dict):  # the subcommands of a subcommand
                parsers += action.choices.values()
    return groups


@pytest.mark.parametrize(
    ("old", "new"),
    # The page's row imports Gradio.
    [pytest.param(*row, marks=[pytest.mark.heavy] * row[0].startswith("`/"), id=codes(row[0])[0]) for row in ROWS],
)
def test_an_old_name_still_works(old, new, tmp_path):
    first = codes(old)[0]
    if first.startswith("gpt4roi."):
        assert [resolve(name) for name in codes(old)] == [resolve(name) for name in codes(new)]
    elif first.startswith("--"):
        groups = [group for group in option_groups() if group & set(codes(new))]
        assert [flag for flag in codes(old) if not any(flag in group for group in groups)] == []
    else:
        assert first in TRIALS, f"write a trial for {first!r} into {__file__}"
        TRIALS[first](tmp_path)


@pytest.mark.parametrize("old", sorted(_MOVED))
def test_what_moved_is_the_same_under_its_old_path_with_all_modules_of_a_package(old):
    package = import_module(f"gpt4roi.{_MOVED[old]}")
    assert import_module(f"gpt4roi.{old}") is package
    assert f"gpt4roi.{old}" in [name for row in ROWS for name in codes(row[0])]
    for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
        ours = import_module(f"{package.__name__}.{module.name}")
        assert import_module(f"gpt4roi.{old}.{module.name}") is ours
        assert ours.__spec__.name == ours.__name__ == f"{package.__name__}.{module.name}"


def test_a_module_that_a_package_never_had_is_missing_under_its_old_path_too():
    with pytest.raises(ModuleNotFoundError, match=r"gpt4roi\.serve\.nothing"):
        import_module("gpt4roi.serve.nothing")


def test_no_alias_is_tried_that_the_table_does_not_name():
    assert set(TRIALS) <= {codes(old)[0] for old, _ in ROWS}
