"""Verdict of the data check, and its report as JSON or as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gpt4roi.data.base import exceeds_bad_fraction, joint_loss
from gpt4roi.data_check.examine import SetResult
from gpt4roi.data_check.findings import Findings, kind_of
from gpt4roi.data_check.lengths import LengthEstimator
from gpt4roi.io.sizes import counted

_SHOWN = 3


@dataclass(frozen=True)
class Verdict:
    """Whether training may begin, the same in words (`ready`, `ready, with remarks`, `not ready`), and why."""

    ready: bool
    word: str
    reason: str


def judge(results: Sequence[SetResult], max_bad_fraction: float, strict: bool = False) -> Verdict:
    """Weighs the findings.

    Not ready: a set that cannot be opened, evaluation images in a training set, or too much lost (exceeds_bad_fraction,
    which lets a single one pass) of a set or of all training sets together, whatever the faults are: annotations left
    out and samples that training would skip count alike. With strict, any error or warning.
    """
    reasons = []
    training = [one for one in results if one.role == "training"]
    for one in results:
        if "set_unreadable" in one.findings.counts:
            reasons.append(f"{one.name} cannot be opened")
        reasons += _too_much_lost([one], one.name, max_bad_fraction)
        if leaks := one.findings.counts["leakage"]:
            reasons.append(f"evaluation images that are training images too: {leaks}")
    if not reasons and len(training) > 1:
        reasons += _too_much_lost(training, "all training sets", max_bad_fraction)
    errors, warnings = (sum(one.findings.number(severity) for one in results) for severity in ("error", "warning"))
    found = f"{counted(errors, 'error')} and {counted(warnings, 'warning')}"
    if not any(one.checked > one.lost for one in training) and not reasons:
        reasons.append("there is nothing to learn from")
    if strict and not reasons and errors + warnings:
        reasons.append(f"{found}, with --strict")
    if reasons:
        return Verdict(False, "not ready", "; ".join(reasons))
    if errors + warnings:
        skipped = sum(count_unusable(one)[0] for one in results)
        left_out = f"{skipped} left out, which stops no training; " if skipped else ""
        return Verdict(True, "ready, with remarks", left_out + found)
    return Verdict(True, "ready", "no fault was found")


def _too_much_lost(results: Sequence[SetResult], name: str, max_bad_fraction: float) -> Iterator[str]:
    """Yields the sentence that says how much of these sets cannot be used, where that is more than is allowed."""
    losses = [(*one.dataset.faults(), one.lost, one.checked) for one in results if one.dataset is not None]
    faults, annotations, lost, checked = (sum(numbers) for numbers in zip((0, 0, 0, 0), *losses, strict=True))
    bad, total = joint_loss(faults, annotations, lost, checked)
    if faults + lost > 1 and exceeds_bad_fraction(bad, total, max_bad_fraction):
        kinds = [(faults, annotations, "annotation"), (lost, checked, "sample")]
        listed = " and ".join(f"{few} of {counted(of, what)}" for few, of, what in kinds if few)
        allowed = f"{100 * bad / total:.3g} %; one, or {100 * max_bad_fraction:.3g} %, is allowed"
        yield f"{listed} in {name} cannot be used ({allowed})"


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
    statistics = result.part.statistics
    lines = [f"{result.name} ({result.role})"]
    if result.dataset is not None:
        numbers = {"image": len(result.images), "region": statistics.regions, "answer": statistics.answers}
        samples = f"{result.checked} of {counted(result.size, 'sample')}"
        if result.checked == result.size:
            samples = counted(result.size, "sample")
        listed = ", ".join([samples, *(counted(number, noun) for noun, number in numbers.items())])
        lines.append(f"  {listed}; {counted(result.lost, 'sample')} would be skipped")
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
            lines.append(f"    to do: {kind_of(kind).advice}")
    return lines


def length_line(result: SetResult, estimator: LengthEstimator) -> str:
    """Says how long the prompts are and what would be dropped."""
    statistics = result.part.statistics
    measured = statistics.lengths.total()
    if not measured:
        return "no prompt could be measured"
    how = "tokens, estimated from bytes (give --model to count them)" if estimator.bytes_per_token else "tokens"
    rounds, cut = counted(statistics.rounds, "round"), counted(statistics.answers_cut, "answer")
    ends = "end" if statistics.answers_cut == 1 else "ends"
    dropped = f"{statistics.rounds_lost} of {rounds} and the {ends} of {cut}"
    sizes = f"{statistics.tokens / measured:.0f} on average, {statistics.longest} at most, of {estimator.limit} {how}"
    return f"prompts: {sizes}; {dropped} would be dropped"
