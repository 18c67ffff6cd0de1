"""Conversion from Osprey-724K to the unified format; its masks become their bounding boxes unless they are asked for.

Each of its files is a list of {file_name, height, width, annotation: [{segmentation, …}]} with either `conversations`,
in which `<region1>` names annotation 1, or `description`, a list with `<region1>: text` for each annotation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt4roi.constants import IMAGE_TOKEN
from gpt4roi.data.annotations import alternating_texts, require_text
from gpt4roi.data.convert.objects import Conversion, caption_fields, frame_fields, with_masks
from gpt4roi.errors import InputError
from gpt4roi.geometry import masks
from gpt4roi.io.coco import InvalidAnnotationError, frame_clues, image_file_name
from gpt4roi.io.images_on_disk import COCO_2014_PREFIX, ImageFinder
from gpt4roi.io.json_files import kind_of, read_json
from gpt4roi.processing.mentions import MENTION, region_numbers

DESCRIBE = "Describe {region} in detail."
LISTED = "The image has these regions: {regions}.\n"
_HEAD = re.compile(r"^\s*<[^>]*>\s*:\s*")


def objects_of_osprey(path: Path, img_prefix: str | Path, target: Conversion) -> Iterator[dict[str, Any]]:
    """Yields one object for each entry; COCO's images are looked up under their names of 2017.

    Raises InputError where the file is not a list.
    """
    entries = read_json(path, "a file of Osprey-724K")
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a list (Osprey's form), got {kind_of(entries)}")
    find = ImageFinder(Path(img_prefix))
    for position, entry in enumerate(entries):
        where = f"{path}#{position}"
        try:
            yield _object(entry, where, find, target)
        except InputError as error:
            reason = error.reason if isinstance(error, InvalidAnnotationError) else "mask that cannot be used"
            target.leave_out(reason, f"{where}: {error}")


def _object(entry: Any, where: str, find: ImageFinder, target: Conversion) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise InvalidAnnotationError("entry that is not an object")
    name = COCO_2014_PREFIX.sub("", require_text(image_file_name(entry), "file_name of the entry"))
    regions = entry.get("annotation")
    if not isinstance(regions, list) or not regions or not all(isinstance(region, dict) for region in regions):
        raise InvalidAnnotationError("entry without regions")
    given = [region.get("segmentation") for region in regions]
    boxes = masks.to_boxes(given)
    image, clues = target.found(find, name, where), frame_clues(entry)
    placed = target.place(image, clues)
    framed = with_masks(frame_fields(placed, clues, boxes), given, placed, target)
    made = {"id": where.rpartition("/")[2], "image": target.image_name(image), **framed}
    if "description" in entry:
        return made | caption_fields(_descriptions(entry["description"], len(regions)), DESCRIBE)
    return made | {"conversations": _conversation(entry.get("conversations"), len(regions))}


def _descriptions(given: Any, count: int) -> list[str]:
    if not isinstance(given, list) or len(given) != count:
        raise InvalidAnnotationError("entry with another number of descriptions than of regions")
    texts = [_HEAD.sub("", described) if isinstance(described, str) else described for described in given]
    return [require_text(described, "description of the region") for described in texts]


def _conversation(turns: Any, count: int) -> list[dict[str, str]]:
    """Returns the turns, with every region introduced in the first question and only named from then on.

    The data's first question may mention none of the regions that later turns and answers speak of.
    """
    values = alternating_texts(turns, "entry")
    if not all(isinstance(value, str) for value in values):
        raise InvalidAnnotationError("entry with a turn that is not text")
    texts = [value.replace(IMAGE_TOKEN, "").strip() for value in values]
    mentioned = {number for text in texts for number in region_numbers(text)}
    if mentioned and not 1 <= min(mentioned) <= max(mentioned) <= count:
        raise InvalidAnnotationError("entry that mentions a region it does not have")
    introduced = set(region_numbers(texts[0]))
    if mentioned - introduced or not mentioned:
        listed = ", ".join(f"<region{number}>" for number in range(1, count + 1))
        texts[0] = LISTED.format(regions=listed) + MENTION.sub(r"region\1", texts[0])
    later = [MENTION.sub(r"region\1", text) for text in texts[1:]]
    return [{"from": ("human", "gpt")[step % 2], "value": text} for step, text in enumerate([texts[0], *later])]
