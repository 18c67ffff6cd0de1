"""Verdict of the data check, and its report as JSON or as lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt4roi.data.base import exceeds_bad_fraction
from gpt4roi.data_check.examine import SetResult
from gpt4roi.data_check.findings import Findings, kind_of
from gpt4roi.data_check.lengths import LengthEstimator

_SHOWN = 3


@dataclass(frozen=True)
class Verdict:
    """Whether training may begin, the same in words (`ready`, `ready, with remarks`, `not ready`), and why."""

    ready: bool
    word: str
    reason: str


def judge(results: Sequence[SetResult], max_bad_fraction: float, strict: bool = False) -> Verdict:
    """Weighs the findings.

    Not ready: a set that cannot be opened, evaluation images in a training set, or so many annotations or samples of
    a set lost that a training stops (exceeds_bad_fraction, which lets a single one pass; a training holds the samples
    of all sets together against it, here each set must do by itself); with strict, any error or warning.
    """
    reasons = []
    for one in results:
        if "set_unreadable" in one.findings.counts:
            reasons.append(f"{one.name} cannot be opened")
        for lost, total, what in _lost_of(one):
            if exceeds_bad_fraction(lost, total, max_bad_fraction):
                allowed = f"{100 * lost / total:.3g} %; one, or {100 * max_bad_fraction:.3g} %, is allowed"
                reasons.append(f"{lost} of {total} {what} in {one.name} cannot be used ({allowed})")
        if one.findings.counts["leakage"]:
            reasons.append(f"evaluation images that are training images too: {one.findings.counts['leakage']}")
    errors, warnings = (sum(one.findings.number(severity) for one in results) for severity in ("error", "warning"))
    if not any(one.checked > one.lost for one in results if one.role == "training") and not reasons:
        reasons.append("there is nothing to learn from")
    if strict and not reasons and errors + warnings:
        reasons.append(f"{errors} errors and {warnings} warnings, with --strict")
    if reasons:
        return Verdict(False, "not ready", "; ".join(reasons))
    if errors + warnings:
        skipped = sum(count_unusable(one)[0] for one in results)
        left_out = f"{skipped} left out, which stops no training; " if skipped else ""
        return Verdict(True, "ready, with remarks", f"{left_out}{errors} errors and {warnings} warnings")
    return Verdict(True, "ready", "no fault was found")


def _lost_of(result: SetResult) -> list[tuple[int, int, str]]:
    """Returns (how many cannot be used, of how many, of what): annotations of the files, and samples looked at."""
    if result.dataset is None:
        return []
    return [(*result.dataset.faults(), "annotations"), (result.lost, result.checked, "samples")]


def count_unusable(result: SetResult) -> tuple[int, int]:
    """Returns how many annotations and samples of a set cannot be used, and of how many."""
    unusable = sum(count for kind, count in result.findings.counts.items() if kind.startswith("object_unusable"))
    return result.lost + unusable, max(result.checked + unusable, 1)


def all_findings(results: Sequence[SetResult]) -> Findings:
    """Joins the findings of all sets."""
    joined = Findings()
    for one in results:
        joined.merge(one.findings)
    return joined


def as_dict(
    results: Sequence[SetResult], verdict: Verdict, estimator: LengthEstimator, settings: dict[str, Any]
) -> dict[str, Any]:
    """Returns the whole report for JSON."""
    return {
        "verdict": verdict.word,
        "ready": verdict.ready,
        "reason": verdict.reason,
        "settings": settings,
        "lengths": {"limit": estimator.limit, "estimated": estimator.bytes_per_token is not None},
        "errors": sum(one.findings.number("error") for one in results),
        "warnings": sum(one.findings.number("warning") for one in results),
        "sets": [one.as_dict() for one in results],
    }


def as_lines(results: Sequence[SetResult], verdict: Verdict, estimator: LengthEstimator) -> list[str]:
    """Returns the report for a terminal."""
    lines: list[str] = []
    for one in results:
        lines += [*_set_lines(one, estimator), ""]
    return [*lines, f"{verdict.word}: {verdict.reason}"]


def _set_lines(result: SetResult, estimator: LengthEstimator) -> list[str]:
    of = "" if result.checked == result.size else f" of {result.size}"
    statistics = result.part.statistics
    lines = [f"{result.name} ({result.role})"]
    if result.dataset is not None:
        lines.append(
            f"  {result.checked}{of} samples, {len(result.images)} images, {statistics.regions} regions, "
            f"{statistics.answers} answers; {result.lost} samples would be skipped"
        )
        lines.append("  " + length_line(result, estimator))
        if result.speed:
            per_second = 1 / result.speed["encode"]
            lines.append(
                f"  reading: {1e3 * result.speed['encode']:.1f} ms a sample, {per_second:.0f} a second and core"
            )
    for kind, count, kept in result.findings:
        severity = kind_of(kind).severity
        lines.append(f"  {severity}: {kind_of(kind).title}: {count}")
        if severity != "note":
            lines += [f"    {finding.message}" for finding in kept[:_SHOWN]]
            lines += ["    …"] if count > _SHOWN else []
    return lines


def length_line(result: SetResult, estimator: LengthEstimator) -> str:
    """Says how long the prompts are and what would be dropped."""
    statistics = result.part.statistics
    measured = statistics.lengths.total()
    if not measured:
        return "no prompt could be measured"
    how = "tokens, estimated from bytes (give --model to count them)" if estimator.bytes_per_token else "tokens"
    dropped = f"{statistics.rounds_lost} of {statistics.rounds} rounds and the ends of {statistics.answers_cut} answers"
    sizes = f"{statistics.tokens / measured:.0f} on average, {statistics.longest} at most, of {estimator.limit} {how}"
    return f"prompts: {sizes}; {dropped} would be dropped"
