"""Data check: examines every set of a list, its samples and images, and duplicates between the sets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from gpt4roi.data.base import RegionDataset
from gpt4roi.data.registry import build_mixture
from gpt4roi.data_check import images
from gpt4roi.data_check.duplicates import duplicates, leaks
from gpt4roi.data_check.findings import Finding, Findings
from gpt4roi.data_check.images import ImageFacts
from gpt4roi.data_check.lengths import LengthEstimator
from gpt4roi.data_check.samples import Part, SampleChecker
from gpt4roi.errors import InputError
from gpt4roi.geometry.frames import FrameRule
from gpt4roi.io.sizes import counted
from gpt4roi.io.worker_pool import parallel_map
from gpt4roi.structures import ImagePipeline

_CHUNKS_PER_WORKER = 16
_LARGEST_CHUNK = 512
_TIMED = 48
ALIKE_FRACTION, ALIKE_FROM = 0.8, 50
"""From so many short answers on, one that makes up this fraction of them is a finding."""


@dataclass
class SetResult:
    """What was found in one data set.

    Attributes:
        name: The type and the file of its entry.
        role: training or evaluation.
        size: Its samples.
        indices: Those that were examined.
        ratio: How often each is drawn in an epoch.
        speed: Seconds a sample for `draw` (annotations), `encode` (all).
    """

    name: str
    role: str
    size: int = 0
    indices: np.ndarray = field(default_factory=lambda: np.arange(0))
    ratio: float = 1.0
    dataset: RegionDataset | None = None
    part: Part = field(default_factory=Part)
    images: dict[str, ImageFacts] = field(default_factory=dict)
    speed: dict[str, float] = field(default_factory=dict)

    @property
    def checked(self) -> int:
        """How many of its samples were examined."""
        return len(self.indices)

    @property
    def findings(self) -> Findings:
        """What was found."""
        return self.part.findings

    @property
    def lost(self) -> int:
        """How many of the samples looked at training would skip."""
        bad = (self.part.images[path].samples for path, facts in self.images.items() if facts.error)
        return self.part.statistics.lost + sum(bad)

    def as_dict(self) -> dict[str, Any]:
        """Returns what goes into JSON."""
        statistics = self.part.statistics.as_dict()
        return {
            "name": self.name,
            "role": self.role,
            "samples": self.size,
            "checked": self.checked,
            "ratio": self.ratio,
            "pictures": len(self.images),
            "unusable": self.lost,
            "statistics": {key: value for key, value in statistics.items() if key not in ("samples", "lost")},
            "left_out": dict(self.dataset.dropped) if self.dataset is not None else {},
            "speed": {key: round(value, 6) for key, value in self.speed.items()},
            "findings": self.findings.as_dict(),
        }


def examine(
    entries: Sequence[tuple[Any, str]],
    estimator: LengthEstimator,
    sample: int | None = None,
    workers: int = 1,
    seed: int = 0,
    rule: FrameRule | None = None,
) -> list[SetResult]:
    """Examines the data sets of a list, one after the other, with progress bars on stderr.

    An entry that cannot be opened is a finding.

    Args:
        entries: (Entry of a list of data sets, role: training or evaluation).
        estimator: Measures prompts.
        sample: How many random samples of each set; all by default.
        workers: Processes that share the work.
        seed: Of draws and samples.
        rule: What is known of the frames of boxes.
    """
    results = []
    for entry, role in entries:
        result = _opened(entry, role, seed)
        dataset = result.dataset
        if dataset is not None:
            _drops(result, dataset)
            indices = np.arange(result.size)
            if sample is not None and sample < result.size:
                indices = np.sort(np.random.default_rng(seed).permutation(result.size)[:sample])
            result.indices = indices
            checker = SampleChecker(dataset, estimator, seed, rule)
            for part in _parallel_map(checker.check, indices.tolist(), workers, f"{result.name}: samples"):
                result.part.merge(part)
            paths = [(path, use.pipeline) for path, use in result.part.images.items()]
            for found in _parallel_map(_examine_images, paths, workers, f"{result.name}: images"):
                result.images.update(found)
            _image_findings(result)
            _label_findings(result)
            result.speed = _speed(dataset, estimator, indices, seed)
        results.append(result)
    for finding in leaks(_images_of(results, "training"), _images_of(results, "evaluation")):
        result = next(one for one in results if one.role == "evaluation" and finding.image in one.images)
        _add_of_image(result, finding)
    return results


def _opened(entry: Any, role: str, seed: int) -> SetResult:
    """Opens one entry; what cannot be opened becomes a finding."""
    named = isinstance(entry, dict) and isinstance(entry.get("type"), str)
    name = f"{entry['type']} {entry.get('ann_file', '')}".strip() if named else repr(entry)[:60]
    result = SetResult(name, role)
    try:
        mixture = build_mixture([entry], seed, where="")
    except InputError as error:
        result.findings.add(Finding("set_unreadable", name, str(error)))
        return result
    result.dataset = mixture.parts[0]
    result.size = len(result.dataset)
    ratio = entry.get("ratio")
    result.ratio = float(ratio) if isinstance(ratio, int | float) else 1.0
    return result


def _drops(result: SetResult, dataset: RegionDataset) -> None:
    for drop in dataset.drops():
        kind = "object_unusable" if drop.detail else "left_out"
        message = drop.detail or f"{drop.where}: {drop.reason}"
        result.findings.add(Finding(f"{kind}:{drop.reason}", drop.where, message))
    n_masks = getattr(dataset, "n_masks", 0)
    if n_masks:
        message = f"{dataset.name}: masks that became their bounding boxes: {n_masks:,}"
        result.findings.add(Finding("masks", dataset.name, message), n_masks)


def _examine_images(paths: Sequence[tuple[str, ImagePipeline]]) -> dict[str, ImageFacts]:
    return {path: images.examine(path, pipeline) for path, pipeline in paths}


def _image_findings(result: SetResult) -> None:
    for path, facts in result.images.items():
        if facts.error:
            use = result.part.images[path]
            also = f" and {counted(use.samples - 1, 'more sample')}" if use.samples > 1 else ""
            kind = "picture_missing" if facts.missing else "picture_unreadable"
            result.findings.add(Finding(kind, use.first, f"{use.first}{also}: {facts.error}"))
    for finding in duplicates(result.images):
        _add_of_image(result, finding)


def _add_of_image(result: SetResult, finding: Finding) -> None:
    """Adds a finding about an image, which is shown as the set's samples open it."""
    use = result.part.images.get(finding.image or "")
    result.findings.add(finding if use is None else replace(finding, image_pipeline=use.pipeline))


def _label_findings(result: SetResult) -> None:
    labels = result.part.statistics.labels
    total = labels.total()
    if total >= ALIKE_FROM:
        text, count = labels.most_common(1)[0]
        if count > ALIKE_FRACTION * total:
            message = f"{result.name}: {count} of {total} short answers are {text!r}"
            result.findings.add(Finding("answers_alike", result.name, message))


def _images_of(results: Sequence[SetResult], role: str) -> dict[str, ImageFacts]:
    return {path: facts for one in results if one.role == role for path, facts in one.images.items()}


def _speed(dataset: RegionDataset, estimator: LengthEstimator, indices: np.ndarray, seed: int) -> dict[str, float]:
    """Times drawing and encoding of random samples in this process; seconds a sample."""
    chosen = np.random.default_rng(seed + 1).permutation(indices)[:_TIMED].tolist()
    drawing = encoding = 0.0
    encoded = 0
    for index in chosen:
        start = time.perf_counter()
        try:
            sample = dataset.sample(index, np.random.default_rng([seed, 0, index]))
            drawn = time.perf_counter()
            drawing += drawn - start
            estimator.processor.encode(sample)
        except InputError:
            continue
        encoding += time.perf_counter() - start
        encoded += 1
    return {"draw": drawing / len(chosen), "encode": encoding / encoded} if encoded else {}


def _parallel_map(work: Callable[[Sequence], Any], items: Sequence, workers: int, title: str) -> Iterator[Any]:
    """Yields the results of `work` on chunks of a list, from several processes, in their order, under a bar."""
    size = max(1, min(_LARGEST_CHUNK, -(-len(items) // (workers * _CHUNKS_PER_WORKER))))
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    with tqdm(total=len(items), desc=title[-70:], mininterval=0.5, disable=None) as bar:
        for chunk, result in zip(chunks, parallel_map(work, chunks, workers, "read the data"), strict=True):
            yield result
            bar.update(len(chunk))
