"""Findings of the data check: their kinds, severity, and what to do about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from gpt4roi.structures import ImagePipeline

Severity = Literal["error", "warning", "note"]

MAX_EXAMPLES = 1000
"""Of each kind this many findings are stored; all are counted."""


class Kind(NamedTuple):
    """One kind of finding.

    An error costs a sample, or makes a figure worthless; a warning is probably not what was meant; a note is good to
    know.
    """

    severity: Severity
    title: str
    advice: str


KINDS: dict[str, Kind] = {
    "set_unreadable": Kind("error", "data set that cannot be opened", "see the message; the other sets were checked"),
    "object_unusable": Kind("error", "annotation that cannot be used", "it is left out; mend or delete it"),
    "sample_unusable": Kind("error", "sample that cannot be encoded", "training skips it; mend or delete it"),
    "picture_missing": Kind("error", "missing image", "check img_prefix and the spelling; fetch what is missing"),
    "picture_unreadable": Kind("error", "unreadable image", "fetch or save it again"),
    "box_inverted": Kind("error", "box with exchanged corners", "write x1 <= x2, y1 <= y2; COCO's are x, y, w, h"),
    "leakage": Kind("error", "evaluation image in the training set", "take it out of the training set"),
    "box_outside": Kind("warning", "box outside its image", "were the boxes made for another size of it?"),
    "box_beyond": Kind("warning", "box reaching beyond its image", "clip it, or check the size it was made for"),
    "box_tiny": Kind("warning", "tiny box", "a region below 2 px in the model's square carries nothing"),
    "box_fractions": Kind("warning", "boxes in fractions instead of pixels", "multiply by width and height"),
    "box_unmentioned": Kind("warning", "box that nobody mentions", "mention it as <regionN>, or leave it out"),
    "size_differs": Kind("warning", "image of another size than the file says", "scale the boxes"),
    "sideways": Kind(
        "warning", "image turned by its EXIF data, with boxes",
        'say "image_pipeline": "detection", or save it upright',
    ),
    "picture_small": Kind("warning", "image below 32 px", "it is blown up; is it a thumbnail?"),
    "rounds_lost": Kind("warning", "conversation too long", "raise --model_max_length, or split it"),
    "sample_repeated": Kind("warning", "the same sample twice", "delete one, or use ratio to repeat a set"),
    "picture_duplicate": Kind("warning", "the same image under two names", "join their boxes under one name"),
    "answers_alike": Kind("warning", "one answer given almost always", "balance them, or the model learns only that"),
    "picture_alike": Kind("note", "images that look the same", "copies in another size or quality?"),
    "left_out": Kind("note", "annotation left out by the data set's own rules", "nothing, if that is what is wanted"),
    "frame": Kind("note", "image turned by its EXIF data", "nothing, if that is what its boxes are of"),
    "masks": Kind("note", "masks that became their bounding boxes", "nothing; region_shape mask reads the masks too"),
}  # fmt: skip
_ORDER = {"error": 0, "warning": 1, "note": 2}


def kind_of(name: str) -> Kind:
    """Returns the kind of a name; a name `object_unusable:empty answer` has the part behind the colon as its title."""
    base, _, title = name.partition(":")
    return KINDS[base]._replace(title=title) if title else KINDS[base]


def _rank(name: str) -> tuple[int, int, str]:
    return _ORDER[kind_of(name).severity], list(KINDS).index(name.partition(":")[0]), name


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: A key of KINDS, with the part behind a colon as its title.
        where: `file#position` of the sample, or the image's path.
        message: The whole sentence.
        image, boxes_px: To show it, where that can be done.
        image_pipeline, ignore_alpha: How the sample opens the image, see RegionSample.
    """

    kind: str
    where: str
    message: str
    image: str | None = None
    boxes_px: tuple[tuple[float, ...], ...] = ()
    image_pipeline: ImagePipeline = "dialogue"
    ignore_alpha: bool = False

    def as_dict(self) -> dict[str, str]:
        """Returns what goes into JSON."""
        return {"where": self.where, "message": self.message}


class Findings:
    """Counts findings by kind and keeps the first of each."""

    def __init__(self, findings: Iterable[Finding] = ()) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[Finding]] = {}
        for finding in findings:
            self.add(finding)

    def add(self, finding: Finding, count: int = 1) -> None:
        """Counts a finding, `count` times, and keeps it where there is room."""
        examples = self.examples.setdefault(finding.kind, [])
        self.counts[finding.kind] += count
        if len(examples) < MAX_EXAMPLES:
            examples.append(finding)

    def merge(self, other: Findings) -> None:
        """Takes over what another one found."""
        self.counts.update(other.counts)
        for kind, findings in other.examples.items():
            examples = self.examples.setdefault(kind, [])
            examples.extend(findings[: MAX_EXAMPLES - len(examples)])

    def __iter__(self) -> Iterator[tuple[str, int, list[Finding]]]:
        """Yields (kind, count, first findings), the worst kinds first."""
        for kind in sorted(self.counts, key=_rank):
            yield kind, self.counts[kind], self.examples[kind]

    def number(self, severity: Severity) -> int:
        """Returns how many findings are of a severity."""
        return sum(count for kind, count in self.counts.items() if kind_of(kind).severity == severity)

    def as_dict(self) -> dict[str, Any]:
        """Returns what goes into JSON."""
        return {
            kind: {
                **kind_of(kind)._asdict(),
                "count": count,
                "findings": [finding.as_dict() for finding in examples],
            }
            for kind, count, examples in self
        }
