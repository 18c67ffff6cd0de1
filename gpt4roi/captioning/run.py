"""Captioning job: boxes in groups that depend on the file alone, sharded over processes, resumable at each."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gpt4roi.captioning.source import Source, SourceImage
from gpt4roi.distributed import DistributedContext
from gpt4roi.errors import InputError
from gpt4roi.generation.encoded_image import PreparedImage, prepare_image
from gpt4roi.generation.many import batched_by_size, describe_images
from gpt4roi.generation.sampling import SamplingParams
from gpt4roi.geometry.frames import BoxFrame, FrameCounts, FrameRule
from gpt4roi.io.atomic import DONE_IS_KEPT
from gpt4roi.io.coco import (
    InvalidAnnotationError,
    annotation_box_inside,
    annotation_raster,
    annotation_xywh,
    image_file_name,
    is_crowd,
)
from gpt4roi.io.journal import Journal, read_job
from gpt4roi.io.json_files import write_json
from gpt4roi.io.progress import Progress
from gpt4roi.processing.images import load_image, read_header
from gpt4roi.processing.user_input import one_region_question, open_image
from gpt4roi.structures import Regions

logger = logging.getLogger(__name__)

_IMAGE = "image "

Described = tuple[PreparedImage, np.ndarray | Regions]
"""An image and its boxes float[N, 4], in pixels, or its regions where the model reads masks."""

Describe = Callable[..., Iterator[list[str]]]
"""From images, as Described, and question, params and batch_size to the texts of each image's boxes."""


@dataclass(frozen=True)
class Outcome:
    """Counts of a finished job.

    Attributes:
        failed: What could not be used and why, by image or annotation.
        left_out: What a rule left out, such as boxes of crowds: reason -> number.
        cut: Boxes cut at their image's border.
        may_be_rerun: Images failed, so another run captions these.
        frames: What was decided about the frames of boxes.
    """

    regions: int
    captioned: int
    failed: list[str]
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    cut: int = 0
    may_be_rerun: bool = False
    frames: FrameCounts = dataclasses.field(default_factory=FrameCounts)


def caption_file(
    chat: Any,
    source: Source,
    out: Path,
    job: dict[str, Any],
    question: str,
    params: SamplingParams,
    batch_size: int = 32,
    field: str = "caption",
    context: DistributedContext | None = None,
    rule: FrameRule | None = None,
    describe: Describe | None = None,
) -> Outcome | None:
    """Writes the source's tables to `out` with a text in `field` of every annotation.

    Images and boxes that cannot be used are reported and stay without the field.

    Args:
        chat: A RegionChat; with `describe`, whatever has its processor.
        source: The boxes.
        out: The result.
        job: What the result depends on; written to the file's `info`, and compared when a job resumes.
        question: About `<region1>`.
        params: How answers are chosen.
        batch_size: Boxes answered at once.
        field: Gets the text.
        context: The processes that share the work.
        rule: How the frame of boxes is found.
        describe: Answers the question; by default generation.many.describe_images with the chat's model.

    Returns:
        The outcome in the first process, None in the others.
    """
    context, rule = context or DistributedContext(), rule or FrameRule()
    question = one_region_question(question)
    describe = describe or partial(describe_images, chat.model, chat.processor)
    if any(field in annotation for annotation in source.content["annotations"]):
        raise InputError(f"annotations have a {field!r} already; name another field for the texts with --field")
    groups = list(batched_by_size(source.images, lambda image: len(image.regions), batch_size))
    segmented = sum(bool(annotation.get("segmentation")) for annotation in source.content["annotations"])
    if segmented and chat.processor.region_shape == "box":
        logger.info("%d annotations have masks, of which the model reads the boxes (region_shape is 'box')", segmented)
    journal = Journal(parts_folder(out), context.rank, "rank-", job)
    done: dict[int, Any] = {}
    for found in context.all_gather(_finished(journal)):
        done |= found
    if done:
        logger.info("resuming: %d of %d groups are done", len(done), len(groups))
    own = [number for number in range(len(groups)) if number not in done][context.rank :: context.size]
    sizes = {number: sum(len(image.regions) for image in groups[number]) for number in own}
    progress = Progress(sum(sizes.values()), "regions", context.rank, context.size)
    for number in own:
        answer = partial(describe, question=question, params=params, batch_size=batch_size)
        done[number] = _caption_group(chat.processor, source, groups[number], answer, rule)
        journal.append([{"group": number, "result": done[number]}])
        progress.update(sizes[number])
    for found in context.all_gather({number: done[number] for number in own}):
        done |= found
    outcome = None
    if context.rank == 0:
        content, outcome = _merge(source, groups, done, field, job)
        write_json(out, content, kept=DONE_IS_KEPT)
    # No process removes the journal before the result is written; images that failed are captioned by another run.
    if not any(context.all_gather(outcome is not None and outcome.may_be_rerun)):
        journal.remove()
    return outcome


def parts_folder(out: Path) -> Path:
    """Returns where a job that is under way keeps its journal."""
    return out.with_name(f"{out.name}.parts")


def outcome_of(content: dict[str, Any], field: str) -> Outcome:
    """Returns the outcome of the job that wrote a file."""
    annotations, info = content["annotations"], content["info"]["gpt4roi"]
    failed, left_out = list(info.get("failed", ())), dict(info.get("left_out", {}))
    captioned = sum(field in annotation for annotation in annotations)
    may_be_rerun = any(one.startswith(_IMAGE) for one in failed)
    return Outcome(len(annotations), captioned, failed, left_out, may_be_rerun=may_be_rerun)


def remove_finished_journal(out: Path, job: dict[str, Any]) -> None:
    """Removes the journal of a job that was killed after its result was written; another job's stays."""
    folder = parts_folder(out)
    with contextlib.suppress(InputError):
        if folder.is_dir() and read_job(folder) == job:
            Journal(folder).remove()


def _finished(journal: Journal) -> dict[int, Any]:
    """Returns the results of the groups that any process finished, by number; not of those whose images failed."""
    records = journal.records()
    done = {one["group"]: one["result"] for one in records if isinstance(one.get("group"), int) and "result" in one}
    return {number: results for number, results in done.items() if not any("error" in one for one in results)}


def _caption_group(
    processor: Any,
    source: Source,
    group: Sequence[SourceImage],
    answer: Callable[[Iterator[Described]], Iterator[list[str]]],
    rule: FrameRule,
) -> list[dict[str, Any]]:
    """Returns, for each image, its size and the text of each box; errors where there is none."""
    results: list[dict[str, Any]] = []
    described: list[dict[str, Any]] = []

    def prepared() -> Iterator[Described]:
        for image in group:
            pair, result = _prepare(processor, source, image, rule)
            results.append(result)
            if pair is not None:
                described.append(result)
                yield pair

    for result, texts in zip(described, list(answer(prepared())), strict=True):
        remaining = iter(texts)
        result["texts"] = [next(remaining) if text is None else text for text in result["texts"]]
    return results


def _prepare(
    processor: Any, source: Source, image: SourceImage, rule: FrameRule
) -> tuple[Described | None, dict[str, Any]]:
    """Returns the image with its usable boxes, if it has any, and the beginnings of its result."""
    try:
        opened, placed = _open_as_annotated(image, rule)
    except InputError as error:
        return None, {"error": str(error), "texts": [False] * len(image.regions)}
    size = placed.box_size
    result: dict[str, Any] = {"size": size, "texts": [], "frame": list(placed.remarks())}
    if placed.header.orientation != 1:
        result["image_pipeline"] = placed.pipeline
    usable: list[list[float]] = []
    rasters: list[np.ndarray | None] = []
    for index in image.regions:
        try:
            annotation = source.content["annotations"][index]
            box, is_cut = annotation_box_inside(annotation, size)
            if processor.region_shape == "mask":
                rasters.append(annotation_raster(annotation, box, size))
            usable.append(box)
            result["texts"].append(None)
            result["cut"] = result.get("cut", 0) + is_cut
        except InputError as error:
            result["texts"].append(False)
            result.setdefault("errors", []).append([index, str(error)])
    boxes = placed.scaled(np.asarray(usable, dtype=np.float64))
    regions = Regions(boxes, tuple(rasters)) if rasters else boxes
    return (prepare_image(processor, opened), regions) if usable else None, result


def _open_as_annotated(image: SourceImage, rule: FrameRule) -> tuple[Image.Image, BoxFrame]:
    """Opens an image in the frame of its boxes."""
    opened = open_image(image.path)
    placed = rule.place(read_header(str(image.path)), image.clues, str(image.path))
    is_upright = placed.frame == "upright" or placed.header.orientation == 1
    return opened if is_upright else load_image(image.path, placed.pipeline), placed


def _merge(
    source: Source, groups: Sequence[Sequence[SourceImage]], done: dict[int, Any], field: str, job: dict[str, Any]
) -> tuple[dict[str, Any], Outcome]:
    """Returns the file's content: the source's tables, what COCO's tools need beside them, and the texts."""
    images = [dict(image) for image in source.content["images"]]
    annotations = [dict(annotation) for annotation in source.content["annotations"]]
    categories = [row for row in source.content.get("categories") or [] if isinstance(row, dict)]
    taken = _values(categories, "id") | _values(annotations, "category_id")
    region = next(number for number in count(1) if number not in taken)
    _add_missing_fields(images, annotations, region)
    failed = list(source.failed)
    frames = FrameCounts()
    captioned = cut = 0
    for number, group in enumerate(groups):
        for image, result in zip(group, done[number], strict=True):
            if "error" in result:
                failed.append(f"{_IMAGE}{images[image.index]['id']}: {result['error']}")
            else:
                _fill_size(images[image.index], *result["size"])
                images[image.index] |= {key: result[key] for key in ("image_pipeline",) if key in result}
                frames.add(result.get("frame", ()), image.path.name)
            cut += result.get("cut", 0)
            failed += [f"annotation {annotations[index]['id']}: {why}" for index, why in result.get("errors", [])]
            for index, text in zip(image.regions, result["texts"], strict=True):
                if text is not False:
                    annotations[index][field] = text
                    captioned += 1
    for image in source.others:
        if image.size is None:
            with contextlib.suppress(InputError):  # no box of it is lost
                _fill_size(images[image.index], *read_header(str(image.path)).size_in("upright"))
    content = {**source.content, "images": images, "annotations": annotations}
    content["categories"] = _categories(categories, annotations, region)
    info = content.get("info")
    came = {"failed": failed, **({"left_out": dict(source.left_out)} if source.left_out else {})}
    content["info"] = {**(info if isinstance(info, dict) else {}), "gpt4roi": {**job, **came}}
    may_be_rerun = any(one.startswith(_IMAGE) for one in failed)
    return content, Outcome(len(annotations), captioned, failed, dict(source.left_out), cut, may_be_rerun, frames)


def _add_missing_fields(images: list[dict[str, Any]], annotations: list[dict[str, Any]], region: int) -> None:
    """Adds the fields without which COCO's tools do not open a file; sizes are known once the images were opened.

    region: the category of what has none.
    """
    for image in images:
        if "file_name" not in image and "coco_url" in image:
            image["file_name"] = image_file_name(image)
    for annotation in annotations:
        if "iscrowd" in annotation:
            annotation["iscrowd"] = int(is_crowd(annotation))
        _fill(annotation, "category_id", region)
        _fill(annotation, "iscrowd", 0)
        with contextlib.suppress(InvalidAnnotationError):  # said where it was to be captioned
            bbox = annotation_xywh(annotation)
            if bbox != annotation.get("bbox"):
                annotation["bbox"] = bbox
            _fill(annotation, "area", bbox[2] * bbox[3])


def _fill_size(image: dict[str, Any], height: int, width: int) -> None:
    _fill(image, "height", height)
    _fill(image, "width", width)


def _fill(row: dict[str, Any], name: str, value: Any) -> None:
    if row.get(name) is None:
        row[name] = value


def _categories(
    categories: list[dict[str, Any]], annotations: list[dict[str, Any]], region: int
) -> list[dict[str, Any]]:
    """Returns the categories, and a name for every number that has none."""
    lacking = sorted(_values(annotations, "category_id") - _values(categories, "id"), key=str)
    return categories + [{"id": one, "name": "region" if one in (1, region) else f"{one}"} for one in lacking]


def _values(rows: Sequence[dict[str, Any]], name: str) -> set[Any]:
    return {row.get(name) for row in rows if isinstance(row.get(name), Hashable)} - {None}
