"""Watched regions: a callback that shows the model's answers to fixed questions at each evaluation on a page."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from gpt4roi.constants import REGION_TOKEN
from gpt4roi.data.mixture import Mixture
from gpt4roi.errors import InputError
from gpt4roi.generation.encoded_image import PreparedImage, Prompt, encode_images
from gpt4roi.generation.many import answer_all
from gpt4roi.generation.sampling import SamplingParams
from gpt4roi.io.atomic import atomic_write_text, written_together
from gpt4roi.io.json_files import as_json
from gpt4roi.processing.batch import OF_SAMPLE
from gpt4roi.processing.images import load_image
from gpt4roi.processing.processor import GPT4RoIProcessor
from gpt4roi.report.drawing import draw_boxes, jpeg_data_url
from gpt4roi.report.rendering import render
from gpt4roi.structures import RegionSample

logger = logging.getLogger(__name__)

PAGE, ANSWERS = "watch.html", "watch.json"
MAX_NEW_TOKENS, IMAGE_SIDE = 48, 240


@dataclass(frozen=True)
class Watched:
    """A question that is asked at each evaluation.

    Attributes:
        sample: The sample up to its question.
        truth: The data's own answer.
    """

    sample: RegionSample
    truth: str

    @property
    def key(self) -> str:
        """Name of the question in watch.json."""
        return f"{self.sample.source}: {self.sample.turns[-1].text}"


def choose(mixture: Mixture, seed: int, count: int) -> list[Watched]:
    """Returns the first questions of samples spread over a data set, of those that have an image and boxes."""
    found: list[Watched] = []
    for index in np.linspace(0, len(mixture) - 1, min(len(mixture), 4 * count)).astype(int).tolist():
        try:
            sample = mixture.sample(index, np.random.default_rng([seed, 0, index]))
        except InputError:  # the evaluation skips it and says why
            continue
        if sample.image is None or not len(sample.boxes_px) or len(sample.turns) < 2:
            continue
        if [turn.role for turn in sample.turns[:2]] == ["user", "assistant"]:
            found.append(Watched(_first_question(sample), sample.turns[1].text))
    step = max(1, len(found) // count) if count else 1
    return found[::step][:count]


def _first_question(sample: RegionSample) -> RegionSample:
    """Returns a sample up to its first question; of boxes that bare `<bbox>` ask for, those of this question."""
    question = sample.turns[0]
    bare = question.text.count(REGION_TOKEN)
    boxes = sample.boxes_px[:bare] if bare else sample.boxes_px
    texts, masks = sample.region_texts[: len(boxes)], sample.masks[: len(boxes)]
    return replace(
        sample,
        turns=(question,),
        boxes_px=boxes,
        masks=masks,
        region_texts=texts,
        augmentation=None,
    )


class WatchRegions(TrainerCallback):
    """Asks the watched questions after every evaluation, and writes the page into the work directory.

    Only the first process asks; a model whose weights are sharded over processes cannot be asked by one of them.
    """

    def __init__(self, watched: list[Watched], processor: GPT4RoIProcessor, trainer: Any) -> None:
        self.watched, self.processor, self.trainer = watched, processor, trainer

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Adds a column to the page."""
        if not state.is_world_process_zero or not self.watched:
            return
        if self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled:
            logger.info("No answers are written: the weights are sharded over processes")
            return
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        with self.trainer.compute_loss_context_manager():
            answers = ask(model, self.processor, [one.sample for one in self.watched])
        folder = Path(args.output_dir)
        history = _history(folder)
        loss = (metrics or {}).get("eval_loss")
        history[str(state.global_step)] = {
            "loss": loss,
            "answers": {one.key: answer for one, answer in zip(self.watched, answers, strict=True)},
        }
        with written_together():
            atomic_write_text(folder / ANSWERS, as_json(history, 1))
            atomic_write_text(folder / PAGE, page(self.watched, history))


def ask(model: Any, processor: GPT4RoIProcessor, samples: list[RegionSample]) -> list[str]:
    """Returns the greedy answers of a model to the last question of each sample, as users get them."""
    was_training = model.training
    model.eval()
    answers: dict[int, str] = {}
    prompts: dict[int, Prompt] = {}
    try:
        for number, sample in enumerate(samples):
            try:
                encoded = processor.encode(sample, generation=True)
            except InputError as error:
                answers[number] = f"[{error}]"
                continue
            of_image = {name: value for name, value in encoded.items() if name not in OF_SAMPLE}
            (image,) = encode_images(model, [PreparedImage(of_image, (1, 1))])
            prompts[number] = image.prompt(encoded, number)
        texts = answer_all(model, processor, list(prompts.values()), SamplingParams(MAX_NEW_TOKENS))
    finally:
        model.train(was_training)
    answers.update(zip(prompts, texts, strict=True))
    return [answers[number] for number in range(len(samples))]


def _history(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / ANSWERS).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def page(watched: list[Watched], history: dict[str, Any]) -> str:
    """Returns the page: a row for each question, a column for each evaluation; right answers stand on green."""
    by_step = [(step, history[step]) for step in sorted(history, key=int)]
    rows = []
    for one in watched:
        answers = [entry["answers"].get(one.key, "") for _, entry in by_step]
        truth = one.truth.strip().lower()
        rows.append(
            {
                "question": one.sample.turns[-1].text,
                "truth": one.truth,
                "answers": [(answer, answer.strip().lower() == truth) for answer in answers],
                **_image(one.sample),
            }
        )
    return render("watch.html", history=by_step, rows=rows) + "\n"


def _image(sample: RegionSample) -> dict[str, str]:
    """Returns the `image` with its boxes as a data URL, or the `fault` for which it cannot be read or drawn on."""
    try:
        image = load_image(sample.image, sample.image_pipeline, ignore_alpha=sample.ignore_alpha)
        width, height = image.size
        scale = np.array([width, height, width, height]) if sample.box_frame == "unit" else 1
        drawn = draw_boxes(image, (np.asarray(sample.boxes_px) * scale).tolist())
    except ValueError as error:  # of the image, or of a box with inverted corners
        return {"image": "", "fault": str(error)}
    return {"image": jpeg_data_url(drawn, IMAGE_SIDE, quality=80), "fault": ""}
