"""VllmEngine: questions about many regions answered by vLLM in this process, for `gpt4roi caption --engine vllm`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from vllm import LLM
from vllm import SamplingParams as VllmSamplingParams
from vllm.platforms import current_platform

from gpt4roi.checkpoint.loading import load_processor
from gpt4roi.generation.encoded_image import PreparedImage
from gpt4roi.generation.sampling import SamplingParams, answer_text
from gpt4roi.serving.vllm import MODE
from gpt4roi.serving.vllm.items import image_item, tokens_prompt
from gpt4roi.structures import Regions, RegionSample, Turn

TORCHRUN = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "ROLE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)


class VllmEngine:
    """A model opened by vLLM.

    Args:
        path: Folder or hub name.
        dtype: Of the language model.
        device: Where one process of torchrun computes; by default what vLLM chooses.
        **options: As `vllm.LLM` takes them, such as tensor_parallel_size.
    """

    def __init__(self, path: str, dtype: torch.dtype, device: torch.device | None = None, **options: Any) -> None:
        self.processor = load_processor(path)
        # Prompts are shorter than the 128 tokens that vLLM caches at once on a CPU by default.
        blocks = {"block_size": 32} if current_platform.is_cpu() else {}
        length = {"max_model_len": self.processor.model_max_length}
        with _environment_of_vllm(device):
            self.llm = LLM(path, tokenizer_mode=MODE, dtype=dtype, seed=0, **blocks | length | options)

    def describe_images(
        self,
        images: Iterable[tuple[PreparedImage, np.ndarray | Regions]],
        question: str,
        params: SamplingParams,
        batch_size: int = 0,
    ) -> Iterator[list[str]]:
        """Asks a question about every region of every image, as generation.many.describe_images does.

        batch_size: not needed; vLLM makes its batches of all that it is given.
        """
        turns, prompts, counts = (Turn("user", question),), [], []
        for image, boxes in images:
            item = image_item(image)
            counts.append(len(boxes))
            for row in range(len(boxes)):
                sample = RegionSample("the image", turns, cast(Any, boxes[row : row + 1]))
                encoded = self.processor.encode_text(sample, generation=True, image_size=image.size)
                prompts.append(tokens_prompt(encoded, item))
        outputs = self.llm.generate(prompts, self._sampling(params), use_tqdm=False) if prompts else []
        texts = iter([answer_text(self.processor, list(one.outputs[0].token_ids), params.stop) for one in outputs])
        for count in counts:
            yield [next(texts) for _ in range(count)]

    def _sampling(self, params: SamplingParams) -> VllmSamplingParams:
        # Stop strings of the caller may stand in the speaker's name, which is no part of an answer.
        own = () if self.processor.answer_prefix else params.stop
        return VllmSamplingParams(
            temperature=params.temperature or 0.0,
            top_p=params.top_p,
            seed=params.seed,
            max_tokens=params.max_new_tokens,
            stop=[*self.processor.stop_strings, *own],
            stop_token_ids=self.processor.stop_token_ids,
            skip_special_tokens=False,
        )


@contextmanager
def _environment_of_vllm(device: torch.device | None) -> Iterator[None]:
    """Sets what the processes that vLLM starts see: not torchrun, to which they do not belong, and one GPU if asked."""
    before, environment = dict(os.environ), os.environ
    hidden = [name for name in environment if name in TORCHRUN or name.startswith("TORCHELASTIC_")]
    for name in hidden:
        del environment[name]
    if hidden:  # a fork would share this process's group
        environment["VLLM_WORKER_MULTIPROCESSING_METHOD"] = "spawn"
    if device is not None and device.type == "cuda" and device.index is not None:
        visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
        environment["CUDA_VISIBLE_DEVICES"] = visible[device.index] if any(visible) else str(device.index)
    try:
        yield
    finally:
        environment.clear()
        environment.update(before)
