"""Comparison of runs of a benchmark: paired differences over the items that all of them have."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.evaluation.items import Benchmark, Item, Scores, Source
from gpt4roi.evaluation.judge import JUDGE_FOLDER
from gpt4roi.io.json_files import read_json, read_jsonl

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OtherRun:
    """Another run: where it lies, what it says of itself, and its predictions by id."""

    path: Path
    metrics: dict[str, Any]
    predictions: dict[str, dict]

    @property
    def verdicts(self) -> Path:
        """Where its judge's verdicts are."""
        return self.path.parent / JUDGE_FOLDER


def read_run(path: str | Path, benchmark: str | None = None, flag: str = "--compare ") -> OtherRun:
    """Reads metrics.json and the predictions.jsonl beside it; a folder means its metrics.json.

    Args:
        path: Of the run.
        benchmark: That it must be of; None for any.
        flag: Begins messages.

    Raises:
        InputError: They are missing or of another benchmark.
    """
    path = Path(path)
    path = path / "metrics.json" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{flag}{path}: no such file; give the metrics.json of another run")
    metrics = read_json(path)
    found = metrics.get("benchmark") if isinstance(metrics, dict) else None
    if found is None or benchmark not in (None, found):
        raise InputError(f"{flag}{path}: is of the benchmark {found!r}, not {benchmark!r}")
    lines = read_jsonl(path.with_name("predictions.jsonl"))
    try:
        return OtherRun(path, metrics, {line["id"]: line for line in lines})
    except (TypeError, KeyError):
        raise InputError(f"{flag}{path.with_name('predictions.jsonl')}: a line has no id") from None


def compare_runs(benchmark: Benchmark, source: Source, items: Sequence[Item], other: OtherRun) -> dict[str, Any]:
    """Returns this run's figures minus the other's over the common items, with intervals of paired resamplings."""
    common = common_items(items, [other])
    if len(common) < len(items):
        logger.warning("--compare: %d of %d questions are also in %s", len(common), len(items), other.path)
    source = with_verdicts_of(source, [other])
    ours, before = benchmark.score(common, source), benchmark.score(answered_by(common, other), source)
    return {
        "with": str(other.path),
        "model": other.metrics.get("model"),
        "items": len(common),
        "differences": differences(ours, before),
    }


def common_items(items: Sequence[Item], runs: Sequence[OtherRun]) -> list[Item]:
    """Returns the items that every run answered. Raises InputError where there is none."""
    common = list(items)
    for run in runs:
        common = [item for item in common if _same(item, run.predictions.get(item.id))]
        if not common:
            raise InputError(f"{run.path}: no question in common with the run that it is compared with")
    return common


def answered_by(items: Sequence[Item], run: OtherRun) -> list[Item]:
    """Returns the items with the answers of a run."""
    return [_as_answered(item, run.predictions[item.id]) for item in items]


def differences(ours: Scores, before: Scores) -> dict[str, dict[str, float]]:
    """Returns each figure that both have: `before`, and the difference with its interval."""
    return {
        name: {"before": round(before.measures[name].value, 6)}
        | ours.measures[name].minus(before.measures[name]).to_dict()
        for name in ours.measures
        if name in before.measures
    }


def with_verdicts_of(source: Source, runs: Sequence[OtherRun]) -> Source:
    """Returns a source whose judge, if it has one, also takes the verdicts that other runs paid for."""
    if source.judge is None:
        return source
    return replace(source, judge=replace(source.judge, also_cached=tuple(run.verdicts for run in runs)))


def _same(item: Item, line: dict | None) -> bool:
    """Tells whether both runs asked about the same regions in the same words."""
    return (
        line is not None
        and line.get("question") == item.query.question
        and json.dumps(line.get("boxes")) == json.dumps(item.query.boxes_px.tolist())
    )


def _as_answered(item: Item, line: dict) -> Item:
    likelihoods = line.get("likelihoods")
    return replace(
        item,
        answer=str(line.get("answer", "")),
        likelihoods=None if likelihoods is None else tuple(map(float, likelihoods)),
        error=line.get("error", ""),
        confidence=line.get("confidence"),
    )
