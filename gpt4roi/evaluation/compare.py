"""Comparison of two runs of a benchmark: paired differences over the items that both have."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.evaluation.items import Benchmark, Item, Source
from gpt4roi.io.json_files import read_json, read_jsonl

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OtherRun:
    """Another run: where it lies, what it says of itself, and its predictions by id."""

    path: Path
    metrics: dict[str, Any]
    predictions: dict[str, dict]


def read_run(path: str | Path, benchmark: str) -> OtherRun:
    """Reads metrics.json and the predictions.jsonl beside it; a folder means its metrics.json.

    Raises InputError where they are missing or of another benchmark.
    """
    path = Path(path)
    path = path / "metrics.json" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"--compare {path}: no such file; give the metrics.json of another run")
    metrics = read_json(path)
    if not isinstance(metrics, dict) or metrics.get("benchmark") != benchmark:
        found = metrics.get("benchmark") if isinstance(metrics, dict) else None
        raise InputError(f"--compare {path}: is of the benchmark {found!r}, not {benchmark!r}")
    lines = read_jsonl(path.with_name("predictions.jsonl"))
    try:
        return OtherRun(path, metrics, {line["id"]: line for line in lines})
    except (TypeError, KeyError):
        raise InputError(f"--compare {path.with_name('predictions.jsonl')}: a line has no id") from None


def compare_runs(benchmark: Benchmark, source: Source, items: Sequence[Item], other: OtherRun) -> dict[str, Any]:
    """Returns this run's figures minus the other's over the common items, with intervals of paired resamplings."""
    common = [item for item in items if _same(item, other.predictions.get(item.id))]
    if not common:
        raise InputError(f"--compare {other.path}: the two runs have no question in common")
    if len(common) < len(items):
        logger.warning("--compare: %d of %d questions are also in %s", len(common), len(items), other.path)
    theirs = [_as_answered(item, other.predictions[item.id]) for item in common]
    ours, before = benchmark.score(common, source), benchmark.score(theirs, source)
    shared = [name for name in ours.measures if name in before.measures]
    return {
        "with": str(other.path),
        "model": other.metrics.get("model"),
        "items": len(common),
        "differences": {
            name: {"before": round(before.measures[name].value, 6)}
            | ours.measures[name].minus(before.measures[name]).to_dict()
            for name in shared
        },
    }


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
    )
