"""Captions the boxes of a COCO file on a Ray cluster, or on the processors of one machine (pip install "ray[data]").

python examples/caption_with_ray.py boxes.json photos captions --model ./GPT4RoI-7B --workers 2

Every worker opens the model once and takes groups of images, each with its boxes; a group of a worker that dies goes
to another. The result is a folder of JSON lines, {"annotation": 7, "caption": "a red apple"}, in no order; images and
boxes that cannot be used have an "error" in place of the caption. With --engine vllm the workers take vLLM, with
--num-gpus 1 a GPU each. The images must be at the same path on every machine.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import ray

from gpt4roi.generation.encoded_image import prepare_image
from gpt4roi.generation.many import describe_images
from gpt4roi.generation.sampling import SamplingParams
from gpt4roi.processing.user_input import open_image, validate_boxes_px

IMAGES_AT_ONCE = 16


def read_rows(annotations: Path, images: Path) -> list[dict[str, Any]]:
    """Returns a row for each image that has boxes: its path, its boxes [x, y, width, height] and their numbers."""
    content = json.loads(annotations.read_text(encoding="utf-8"))
    paths = {image["id"]: str(images / image["file_name"]) for image in content["images"]}
    rows: dict[Any, dict[str, Any]] = {}
    for annotation in content["annotations"]:
        image = annotation["image_id"]
        row = rows.setdefault(image, {"image": paths[image], "boxes": [], "annotations": []})
        row["boxes"].append([float(number) for number in annotation["bbox"]])
        row["annotations"].append(annotation["id"])
    return list(rows.values())


class Captioner:
    """One worker: a model, opened once."""

    def __init__(self, model: str, engine: str, dtype: str | None, question: str, params: SamplingParams) -> None:
        self.question, self.params = question, params
        if engine == "vllm":
            from gpt4roi.devices import choose_device, choose_dtype
            from gpt4roi.serving.vllm.engine import VllmEngine

            opened = VllmEngine(model, choose_dtype(choose_device(), dtype))
            self.processor, self.describe = opened.processor, opened.describe_images
        else:
            from gpt4roi import RegionChat

            chat = RegionChat.from_pretrained(model, dtype=dtype)
            self.processor = chat.processor
            self.describe = lambda images, *rest: describe_images(chat.model, chat.processor, images, *rest)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Answers for a group of images; one record an annotation."""
        found: dict[str, list[Any]] = {"annotation": [], "caption": [], "error": []}
        usable = []
        for path, sides, numbers in zip(rows["image"], rows["boxes"], rows["annotations"], strict=True):
            boxes = [[x, y, x + width, y + height] for x, y, width, height in sides]
            try:
                image = open_image(path)
                boxes_px = validate_boxes_px(boxes, (image.height, image.width))
                usable.append((numbers, prepare_image(self.processor, image), boxes_px))
            except ValueError as error:  # gpt4roi.InputError: the image, or one of its boxes
                _add(found, numbers, [None] * len(boxes), str(error))
        texts = self.describe([(image, boxes) for _, image, boxes in usable], self.question, self.params, 32)
        for (numbers, _, _), captions in zip(usable, list(texts), strict=True):
            _add(found, numbers, captions, None)
        return found


def _add(found: dict[str, list[Any]], numbers: Any, captions: list[str | None], error: str | None) -> None:
    found["annotation"] += [int(number) for number in numbers]
    found["caption"] += captions
    found["error"] += [error] * len(captions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path, help="folder of the result; absent or empty")
    parser.add_argument("--model", default="exp/quickstart/stage2")
    parser.add_argument("--question", default="What is <region1>?")
    parser.add_argument("--engine", choices=("own", "vllm"), default="own")
    parser.add_argument("--dtype", help="of the language model (default: the best that the device supports)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--num-gpus", type=float, default=0, help="of each worker")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    args = parser.parse_args()
    images = read_rows(args.annotations, args.images.resolve())
    rows = ray.data.from_items(images, override_num_blocks=min(4 * args.workers, len(images)))
    model = str(Path(args.model).resolve()) if Path(args.model).exists() else args.model
    captions = rows.map_batches(
        Captioner,
        fn_constructor_args=(model, args.engine, args.dtype, args.question, SamplingParams(args.max_new_tokens)),
        batch_size=IMAGES_AT_ONCE,
        num_cpus=0.5,  # as many workers as cores must leave some for reading and writing, or nothing goes on
        num_gpus=args.num_gpus or None,
        compute=ray.data.ActorPoolStrategy(size=args.workers),
    )
    captions.write_json(str(args.out.resolve()))


if __name__ == "__main__":
    main()
