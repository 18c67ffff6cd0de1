"""HTML report of a data check: verdict, figures, findings, faulty images, and samples as the model reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from gpt4roi.data_check.examine import SetResult
from gpt4roi.data_check.findings import Finding, kind_of
from gpt4roi.data_check.lengths import LengthEstimator
from gpt4roi.data_check.statistics import LENGTH_STEP
from gpt4roi.data_check.verdict import Verdict, all_findings, count_unusable, length_line
from gpt4roi.errors import InputError
from gpt4roi.io.sizes import counted
from gpt4roi.processing.images import load_image
from gpt4roi.report.report import PAGE_SIDE, Answer, Bin, GalleryItem, Report, Tag

_TONES = {"error": "bad", "warning": "warn", "note": "soft"}
_LISTED = 200
_FINDING_WORDS = ("finding", "image", "kind of finding")
_BARS = 20
_COUNT = "{:,}".format


def write_page(
    path: Path, results: Sequence[SetResult], verdict: Verdict, estimator: LengthEstimator, settings: dict[str, Any]
) -> Path:
    """Writes the report, with `settings["show"]` samples; raises InputError where it cannot be written."""
    page = Report(
        f"Data check: {settings['config']}", f"{verdict.word[0].upper()}{verdict.word[1:]}: {verdict.reason}."
    )
    page.facts(_facts(results, verdict))
    page.table("Data sets", _SET_HEADER, [_set_row(one) for one in results])
    _findings(page, results)
    per_kind = -(-settings["show"] // max(len(all_findings(results).counts), 1))
    faulty = list(_faulty(results, per_kind))
    if faulty:
        page.gallery("Findings with an image", faulty, f"At most {per_kind:,} of each kind.", _FINDING_WORDS)
    for one in results:
        _statistics(page, one, estimator)
    for one, share in _shares(results, settings["show"]):
        samples = list(_samples(one, estimator, share))
        note = f"{_COUNT(len(samples))} of {counted(one.checked, 'sample')}"
        if share < one.checked:
            note += f", of {_COUNT(share)} drawn at random; --show N shows more"
        note += ". Supervised text is highlighted. Not shown: samples that cannot be used, and those without an image."
        if samples:
            title = f"Samples as the model reads them: {one.name} ({one.role})"
            page.gallery(title, samples, note, ("", "sample", ""))
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
        ("errors", _COUNT(findings.number("error")), counted(findings.number("warning"), "warning")),
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
        [Tag(known.severity, _TONES[known.severity]), known.title, count, listed[0].message, known.advice]
        for known, count, listed in ((kind_of(kind), count, listed) for kind, count, listed in findings)
    ]
    page.table("Findings", ["", "what", "how many", "the first", "what to do"], rows)
    lines = [[kind_of(kind).title, finding.message] for kind, _, listed in findings for finding in listed[:_LISTED]]
    total = sum(count for _, count, _ in findings)
    more = f"{len(lines):,} of {total:,}; --json lists more." if total > len(lines) else ""
    page.table(f"Every finding ({total:,})", ["what", "where, and how"], lines, more, folded=True)


def _faulty(results: Sequence[SetResult], per_kind: int) -> Iterator[GalleryItem]:
    """Yields findings whose image opens, with the boxes they are about; of each set at most so many of a kind."""
    for one in results:
        for kind, _, listed in one.findings:
            opening = ((finding, _opened(finding)) for finding in listed)
            for finding, image in islice(((finding, image) for finding, image in opening if image), per_kind):
                remark = Answer(kind_of(kind).title, finding.message, task=kind_of(kind).title)
                boxes = [_upright(box) for box in finding.boxes_px]
                yield _card(image, boxes, Path(finding.where).name, answers=[remark])


def _card(image: Image.Image, boxes_px: Sequence[Sequence[float]] | np.ndarray, title: str, **more: Any) -> GalleryItem:
    """Returns an image, of the size that a page shows, with its boxes: hundreds of whole ones would fill the memory."""
    width, height = image.size
    image.thumbnail((PAGE_SIDE, PAGE_SIDE))
    scale = np.tile([image.width / width, image.height / height], 2)
    return GalleryItem(image, np.asarray(boxes_px, dtype=float).reshape(-1, 4) * scale, title, **more)


def _upright(box: Sequence[float]) -> tuple[float, ...]:
    """Returns a box with its corners in order, so that it can be drawn."""
    x1, y1, x2, y2 = box
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _opened(finding: Finding) -> Image.Image | None:
    """Opens the image of a finding as its sample does; None where it has none that opens."""
    if finding.image is None:
        return None
    try:
        return load_image(finding.image, finding.image_pipeline, ignore_alpha=finding.ignore_alpha)
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


def _shares(results: Sequence[SetResult], show: int) -> Iterator[tuple[SetResult, int]]:
    """Yields each set with how many of its samples are shown: alike, and what a small set leaves goes to the others."""
    left, shares = show, {}
    by_size = sorted(range(len(results)), key=lambda number: results[number].checked)
    for position, number in enumerate(by_size):
        shares[number] = min(results[number].checked, left // (len(results) - position))
        left -= shares[number]
    for number, one in enumerate(results):
        yield one, shares[number]


def _samples(one: SetResult, estimator: LengthEstimator, share: int) -> Iterator[GalleryItem]:
    """Yields samples that can be used, in their order, with what the model reads of them."""
    if one.dataset is None:
        return
    chosen = np.sort(np.random.default_rng(0).permutation(one.indices)[:share]).tolist()
    for index in tqdm(chosen, desc=f"{one.name}: page"[-70:], mininterval=0.5, disable=None):
        try:
            sample = one.dataset.sample(index, np.random.default_rng([0, 0, index]))
            if sample.image is None:
                continue
            image = load_image(sample.image, sample.image_pipeline, ignore_alpha=sample.ignore_alpha)
            size = (image.height, image.width)
            encoded = estimator.processor.encode_text(sample, image_size=size)
            tokens = estimator.measure(sample, size).tokens
        except InputError:
            continue
        boxes = sample.boxes_px
        if sample.box_frame == "unit":
            boxes = boxes * [image.width, image.height, image.width, image.height]
        read = [encoded[key] for key in ("input_ids", "labels", "segment_ids") if key in encoded]
        spans = estimator.processor.supervision_spans(*read)
        yield _card(image, boxes, f"{sample.source.rpartition('/')[2]} · {tokens:,} tokens", spans=spans)
