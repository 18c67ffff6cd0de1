"""Detection among proposals: how likely each region shows what is asked for, and what is left after NMS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torchvision.ops import batched_nms

from gpt4roi.errors import InputError
from gpt4roi.generation.encoded_image import EncodedImage
from gpt4roi.generation.likelihood import answered_prompt, choose, log_likelihoods
from gpt4roi.processing.mentions import as_plain_text
from gpt4roi.structures import Regions, RegionSample, Turn

YES_OR_NO = ("yes", "no")


@dataclass(frozen=True)
class Detection:
    """A proposal that shows what a query asks for; region: its number from 1, box: float64[4] xyxy in pixels."""

    query: str
    region: int
    box: np.ndarray
    score: float


def check_queries(queries: Sequence[str]) -> tuple[str, ...]:
    """Returns queries without outer blanks. Raises InputError where there is none, an empty one or one twice."""
    cleaned = () if isinstance(queries, str) else tuple(as_plain_text(str(query)).strip() for query in queries)
    if not cleaned or not all(cleaned) or len(set(cleaned)) < len(cleaned):
        raise InputError(f"queries are a list of texts, none empty or given twice, got {queries!r:.80}")
    return cleaned


def check_limits(threshold: float, nms_iou: float, batch_size: int) -> None:
    """Raises InputError where a probability or an overlap is outside of [0, 1], or a batch is empty."""
    if not (0 <= threshold <= 1 and 0 <= nms_iou <= 1):
        raise InputError(f"threshold and nms_iou are from 0 to 1, got {threshold} and {nms_iou}")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")


def query_scores(
    model: Any,
    processor: Any,
    image: EncodedImage,
    regions: np.ndarray | Regions,
    queries: Sequence[str],
    question: str,
    batch_size: int = 64,
) -> np.ndarray:
    """Returns float64[N, Q] in [0, 1]: how likely each region shows what each query asks for.

    Args:
        model: A GPT4RoI model.
        processor: Its processor.
        image: The encoded image.
        regions: N regions of the image, or boxes float[N, 4] xyxy in pixels.
        queries: Q texts, worded as the model would answer or be asked.
        question: Mentions `<region1>`. With `{}`, which stands for the query, it is answered by yes or no, and the
            score is the probability of yes against no; without, the score is the probability of the query as answer.
        batch_size: Answers scored at once.
    """
    each = [regions[row : row + 1] for row in range(len(regions))]
    if "{}" in question:
        asked = [(region, question.replace("{}", query)) for region in each for query in queries]
        found = choose(model, processor, image, asked, YES_OR_NO, batch_size)
        return np.array([one.probabilities["yes"] for one in found]).reshape(len(regions), len(queries))
    samples = [RegionSample("the image", (Turn("user", question),), cast(Any, region)) for region in each]
    answered = [[answered_prompt(processor, image, sample, query) for query in queries] for sample in samples]
    return np.exp(np.array(log_likelihoods(model, answered, batch_size))).reshape(len(regions), len(queries))


def select(
    scores: np.ndarray, boxes_px: np.ndarray, queries: Sequence[str], threshold: float, nms_iou: float
) -> list[Detection]:
    """Returns the detections of query_scores, of each query the likeliest first.

    Args:
        scores: float[N, Q].
        boxes_px: float[N, 4], xyxy in pixels.
        queries: Q texts.
        threshold: Lowest score.
        nms_iou: A box is dropped that overlaps a likelier one of the same query by more; 1 keeps all.
    """
    rows, columns = np.nonzero(scores >= threshold)
    chosen = scores[rows, columns]
    boxes = torch.from_numpy(np.asarray(boxes_px, dtype=np.float64)[rows])
    kept = batched_nms(boxes, torch.from_numpy(chosen), torch.from_numpy(columns), nms_iou).tolist()
    ordered = sorted(kept, key=lambda row: (columns[row], -chosen[row]))
    return [
        Detection(queries[columns[row]], int(rows[row]) + 1, np.asarray(boxes_px)[rows[row]], float(chosen[row]))
        for row in ordered
    ]


def coco_results(detections: Sequence[Detection], queries: Sequence[str], image_id: Any) -> list[dict[str, Any]]:
    """Returns detections as COCO's results; the category is the query's number, from 1."""
    numbers = {query: number for number, query in enumerate(queries, start=1)}
    return [
        {
            "image_id": image_id,
            "category_id": numbers[one.query],
            "category_name": one.query,
            "bbox": [round(float(value), 2) for value in (*one.box[:2], *(one.box[2:] - one.box[:2]))],
            "score": round(one.score, 6),
        }
        for one in detections
    ]
