"""HTML report of a data check: verdict, figures, findings, faulty images, and samples as the model reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi.data_check.examine import SetResult
from gpt4roi.data_check.findings import Finding, kind_of
from gpt4roi.data_check.lengths import LengthEstimator
from gpt4roi.data_check.statistics import LENGTH_STEP
from gpt4roi.data_check.verdict import Verdict, all_findings, count_unusable, length_line
from gpt4roi.errors import InputError
from gpt4roi.processing.images import load_image
from gpt4roi.report.report import Answer, Bin, GalleryItem, Report, Tag

_TONES = {"error": "bad", "warning": "warn", "note": "soft"}
_LISTED = 200
_SHOWN_IMAGES = 3
_SAMPLES = 6
_BARS = 20
_COUNT = "{:,}".format


def write_page(
    path: Path, results: Sequence[SetResult], verdict: Verdict, estimator: LengthEstimator, settings: dict[str, Any]
) -> Path:
    """Writes the report; raises InputError where it cannot be written."""
    page = Report(
        f"Data check: {settings['config']}", f"{verdict.word[0].upper()}{verdict.word[1:]}: {verdict.reason}."
    )
    page.facts(_facts(results, verdict))
    page.table("Data sets", _SET_HEADER, [_set_row(one) for one in results])
    _findings(page, results)
    faulty = list(_faulty(results))
    if faulty:
        page.gallery("Findings with an image", faulty, f"At most {_SHOWN_IMAGES} of each kind.")
    for one in results:
        _statistics(page, one, estimator)
    samples = [item for one in results if one.role == "training" for item in _samples(one, estimator)]
    if samples:
        page.gallery("Samples as the model reads them", samples, "Drawn at random; supervised text is highlighted.")
    page.table("How it was checked", ["", ""], [[key.replace("_", " "), str(value)] for key, value in settings.items()])
    return page.write(path)


def _facts(results: Sequence[SetResult], verdict: Verdict) -> list[tuple[str, str, str]]:
    findings = all_findings(results)
    unusable, total = (sum(pair) for pair in zip(*map(count_unusable, results), strict=True))
    size = sum(one.size for one in results)
    checked = sum(one.checked for one in results)
    return [
        ("verdict", verdict.word, ""),
        ("samples checked", _COUNT(checked), "all" if checked == size else f"of {size:,}"),
        ("images", _COUNT(sum(len(one.images) for one in results)), "each opened once"),
        ("regions", _COUNT(sum(one.part.statistics.regions for one in results)), ""),
        ("cannot be used", _COUNT(unusable), f"{100 * unusable / total:.3g} % of samples and annotations"),
        ("errors", _COUNT(findings.number("error")), f"{_COUNT(findings.number('warning'))} warnings"),
    ]


_SET_HEADER = [
    "data set", "role", "samples", "checked", "ratio", "images", "regions", "answers", "unusable", "errors",
    "warnings", "ms a sample",
]  # fmt: skip


def _set_row(one: SetResult) -> list[Any]:
    statistics, encode = one.part.statistics, one.speed.get("encode")
    return [
        one.name,
        one.role,
        one.size,
        one.checked,
        one.ratio,
        len(one.images),
        statistics.regions,
        statistics.answers,
        count_unusable(one)[0],
        one.findings.number("error"),
        one.findings.number("warning"),
        None if encode is None else round(1e3 * encode, 2),
    ]


def _findings(page: Report, results: Sequence[SetResult]) -> None:
    findings = list(all_findings(results))
    if not findings:
        page.text("No fault was found.", "Findings")
        return
    rows = [
        [_tag(kind), kind_of(kind).title, count, listed[0].message, kind_of(kind).advice]
        for kind, count, listed in findings
    ]
    page.table("Findings", ["", "what", "how many", "the first", "what to do"], rows)
    lines = [[kind_of(kind).title, finding.message] for kind, _, listed in findings for finding in listed[:_LISTED]]
    total = sum(count for _, count, _ in findings)
    more = f"{len(lines):,} of {total:,}; --json lists more." if total > len(lines) else ""
    page.table(f"Every finding ({total:,})", ["what", "where, and how"], lines, more, folded=True)


def _tag(kind: str) -> Tag:
    severity = kind_of(kind).severity
    return Tag(severity, _TONES[severity])


def _faulty(results: Sequence[SetResult]) -> Iterator[GalleryItem]:
    """Yields findings whose image opens, with the boxes they are about."""
    for one in results:
        for kind, _, listed in one.findings:
            shown = 0
            for finding in listed:
                image = _opened(finding.image) if finding.image else None
                if image is not None and shown < _SHOWN_IMAGES:
                    shown += 1
                    remark = Answer(kind_of(kind).title, finding.message, task=kind_of(kind).title)
                    yield GalleryItem(image, [_upright(box) for box in finding.boxes_px], _short(finding), [remark])


def _upright(box: Sequence[float]) -> tuple[float, ...]:
    """Returns a box with its corners in order, so that it can be drawn."""
    x1, y1, x2, y2 = box
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _short(finding: Finding) -> str:
    return Path(finding.where).name


def _opened(path: str) -> Any:
    try:
        return load_image(path)
    except InputError:
        return None


def _statistics(page: Report, one: SetResult, estimator: LengthEstimator) -> None:
    statistics = one.part.statistics
    if not statistics.lengths:
        return
    starts = sorted(statistics.lengths)
    step = LENGTH_STEP * max(1, -(-(starts[-1] - starts[0]) // (LENGTH_STEP * _BARS)))
    lengths = [
        Bin(
            f"{start} to {start + step - 1}",
            sum(statistics.lengths[at] for at in range(start, start + step, LENGTH_STEP)),
        )
        for start in range(starts[0] // step * step, starts[-1] + 1, step)
    ]
    labels = [Bin(text[:40], count) for text, count in statistics.labels.most_common(_BARS)]
    sizes = [Bin(f"{10 * tenth} to {10 * tenth + 10} %", statistics.sizes[tenth]) for tenth in range(10)]
    labels_once = sum(count == 1 for count in statistics.labels.values())
    note = (
        f"{length_line(one, estimator)}. Short answers: {statistics.labels.total():,}, of which "
        f"{len(statistics.labels):,} are different and {labels_once:,} occur once. "
        "Box size: root of the share of the image."
    )
    charts = [("prompt length, tokens", lengths), ("most frequent short answers", labels), ("box size", sizes)]
    page.histograms(one.name, charts, note)


def _samples(one: SetResult, estimator: LengthEstimator) -> Iterator[GalleryItem]:
    """Yields random samples that can be used, with what the model reads of them."""
    if one.dataset is None:
        return
    shown = 0
    for index in np.random.default_rng(0).permutation(one.size)[: 10 * _SAMPLES].tolist():
        try:
            sample = one.dataset.sample(index, np.random.default_rng([0, 0, index]))
            if sample.image is None:
                continue
            image = load_image(sample.image, sample.image_pipeline)
            size = (image.height, image.width)
            encoded = estimator.processor.encode_text(sample, image_size=size)
            tokens = estimator.measure(sample, size).tokens
        except InputError:
            continue
        boxes = sample.boxes_px
        if sample.box_frame == "unit":
            boxes = boxes * [image.width, image.height, image.width, image.height]
        passages = estimator.processor.supervision_spans(encoded["input_ids"], encoded["labels"])
        yield GalleryItem(image, boxes, f"{sample.source.rpartition('/')[2]} · {tokens} tokens", passages=passages)
        shown += 1
        if shown == _SAMPLES:
            return
