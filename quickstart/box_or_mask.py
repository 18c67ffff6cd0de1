"""Compares boxes with masks on overlapping pairs, by alignment alone: `python -m quickstart.box_or_mask DATA`.

One region encoder of each shape is aligned with the texts of train.jsonl and train_overlapping.jsonl as stage 1 does it
before its steps. Then the text nearest to each region's embedding, of all texts, is compared with what the region is
called: in test_overlapping.jsonl, where the boxes of two things nearly coincide, and in test.jsonl, where they hardly
touch. Nothing is generated.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gpt4roi.checkpoint.build import build_from_parts
from gpt4roi.checkpoint.loading import load_model, load_processor
from gpt4roi.data.registry import build_mixture
from gpt4roi.data.training_dataset import EncodedDataset
from gpt4roi.errors import InputError
from gpt4roi.processing.batch import RegionCollator
from gpt4roi.train.alignment import RegionTexts, align_regions, alignment_loss, load_region_texts
from gpt4roi.train.training import set_regularisation
from gpt4roi.train.work_dir import REGION_TEXTS
from quickstart.recipe import data_sets

TRAIN = {"train.jsonl": {"caption": 8}, "train_overlapping.jsonl": {"caption": 8}}
TESTS = ("test_overlapping", "test")
BATCH = 16


class Features:
    """The tower's outputs for the images of data sets, in half precision, as EncodedDataset takes them."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self.outputs: dict[str, dict[str, Any]] = {}
        self.sizes: dict[str, tuple[int, int]] = {}

    def __contains__(self, image: str) -> bool:
        return True

    @torch.inference_mode()
    def get(self, image: str) -> dict[str, Any]:
        """Returns `image_tokens` and `feature_maps` of one image."""
        if image not in self.outputs:
            opened = self.processor.load_image(image, "detection")
            self.sizes[image] = opened.height, opened.width
            pixels = self.processor.to_pixel_values(opened, "detection")
            tokens, maps = self.model.encode_image(pixels[None])
            self.outputs[image] = {
                "image_tokens": tokens[0].half(),
                "feature_maps": [level[0].half() for level in maps],
            }
        return self.outputs[image]

    def image_size(self, image: str) -> tuple[int, int]:
        """Returns the (height, width) of an image."""
        self.get(image)
        return self.sizes[image]


def batches(dataset: EncodedDataset, processor: Any) -> list[dict[str, Any]]:
    """Returns all samples of a data set, encoded, in batches."""
    collate = RegionCollator(processor.tokenizer.pad_token_id)
    starts = range(0, len(dataset), BATCH)
    return [collate([dataset[i] for i in range(start, min(start + BATCH, len(dataset)))]) for start in starts]


@torch.inference_mode()
def share_right(model: Any, loss: Any, dataset: EncodedDataset, processor: Any) -> float:
    """Returns the share of regions whose own text is the nearest."""
    encoder, hits, seen = model.region_encoder.eval(), 0, 0
    for batch in batches(dataset, processor):
        maps = [level.float() for level in batch["feature_maps"]]
        cells = encoder.mask_cells(batch["boxes"], batch.get("masks"), encoder.output_size)
        content, judgement = encoder.learned(encoder.pool(maps, batch["boxes"]), cells)
        hits += loss.count_hits(content, batch["text_ids"], judgement)
        seen += int((batch["text_ids"] >= 0).sum())
    return hits / seen


def compare(
    data: Path, recipe: dict[str, Any], epochs: int, seed: int = 0, quick: bool = False
) -> dict[str, dict[str, float]]:
    """Returns for each shape and test file the share of regions whose own text is the nearest.

    quick: Of overlapping pairs alone, in training and test.
    """
    train_files = {name: tasks for name, tasks in TRAIN.items() if "overlapping" in name or not quick}
    settings = {name: value for name, value in recipe["model"].items() if name != "classifier_head"}
    settings["vision_tower"], parts = data / settings["vision_tower"], data / "parts/language_model"
    features: Features | None = None
    results: dict[str, dict[str, float]] = {}
    for shape in ("box", "mask"):
        torch.manual_seed(seed)
        model, processor = build_from_parts(parts, region_shape=shape, **settings)
        features = features or Features(model, processor)
        mixture = build_mixture(data_sets(train_files, data), seed)
        with tempfile.TemporaryDirectory() as folder:
            texts: RegionTexts = load_region_texts(Path(folder, "texts"), mixture, processor.tokenizer, model)
        loss = alignment_loss(model, texts, processor.tokenizer, 1.0)
        dataset = EncodedDataset(mixture, processor, seed, features, texts.index)
        train = recipe["stage1"]
        set_regularisation(model, train["region_mixup"], train["region_noise"])
        made = batches(dataset, processor)
        model.calibrate(
            [torch.cat(level).float() for level in zip(*(one["feature_maps"] for one in made[:8]), strict=True)]
        )
        align_regions(model, loss, made, epochs, train["align_learning_rate"], torch.Generator().manual_seed(seed))
        tests = {
            name: build_mixture(data_sets({f"{name}.jsonl": {"caption": 8}}, data), seed)
            for name in TESTS[: 1 if quick else None]
        }
        found = {name: EncodedDataset(one, processor, seed, features, texts.index) for name, one in tests.items()}
        results[shape] = {name: round(share_right(model, loss, one, processor), 4) for name, one in found.items()}
    return results


def measure(data: Path, trained: Sequence[Path]) -> dict[str, dict[str, float]]:
    """Returns the same shares of regions for trained models, folders of stage 1 or 2 with their texts, by folder."""
    features: Features | None = None
    results: dict[str, dict[str, float]] = {}
    for folder in trained:
        if not (folder / REGION_TEXTS).is_file():
            raise InputError(
                f"{folder}: no {REGION_TEXTS}; expected a folder of a training with --align_regions or align_weight"
            )
        model, processor = load_model(folder, dtype=torch.float32).eval(), load_processor(folder)
        texts = RegionTexts.load(folder / REGION_TEXTS)
        loss = alignment_loss(model, texts, processor.tokenizer, 1.0)
        features = features or Features(model, processor)
        found: dict[str, float] = {}
        for name in TESTS:
            mixture = build_mixture(data_sets({f"{name}.jsonl": {"caption": 8}}, data), 0)
            dataset = EncodedDataset(mixture, processor, 0, features, texts.index)
            found[name] = round(share_right(model, loss, dataset, processor), 4)
        results[str(folder)] = found
    return results


def main() -> None:
    """Prints the shares as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of python -m quickstart and python -m quickstart.overlapping")
    parser.add_argument("--recipe", type=Path, default=Path(__file__).with_name("recipe_one_token.json"))
    parser.add_argument("--epochs", type=int, default=8, help="of the alignment (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trained", type=Path, nargs="+", metavar="DIR", help="measure these models; train none")
    parser.add_argument("--quick", action="store_true", help="train and test on overlapping pairs alone")
    args = parser.parse_args()
    if not (args.data / "test_overlapping.jsonl").is_file():
        raise InputError(
            f"{args.data}: no test_overlapping.jsonl; make it: python -m quickstart.overlapping {args.data}"
        )
    recipe = json.loads(args.recipe.read_text())
    found = (
        measure(args.data, args.trained)
        if args.trained
        else compare(args.data, recipe, args.epochs, args.seed, args.quick)
    )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"quickstart: {error}")
