"""The model in vLLM: our tower, projector and region encoder as they are, before vLLM's own language model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMultiModal, SupportsPP
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY

from gpt4roi.errors import InputError
from gpt4roi.generation.encoded_image import EncodedImage, PreparedImage, encode_images
from gpt4roi.models import modeling
from gpt4roi.serving.vllm import MODE
from gpt4roi.serving.vllm.items import FIELDS
from gpt4roi.serving.vllm.processing import DummyInputs, ProcessingInfo, Processor

MAX_IMAGES = 16
"""Encoded images that are held for further regions of them; vLLM's own caches hold embeddings."""

ENCODERS = ("vision_tower", "mm_projector", "region_encoder")


@MULTIMODAL_REGISTRY.register_processor(Processor, info=ProcessingInfo, dummy_inputs=DummyInputs)
class GPT4RoIForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsPP, SupportsLoRA):
    """Embeds images and regions, and lets vLLM's model of the language model's architecture decode.

    Every process of tensor parallelism holds the encoders; the language model is split.
    """

    allow_patterns_overrides = ("model*.safetensors", "pytorch_model*.bin")
    """Nothing else of a folder is weights."""

    packed_modules_mapping = {  # noqa: RUF012 (as vLLM declares it)
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    vision_tower: nn.Module
    mm_projector: nn.Module
    region_encoder: nn.Module
    encode_image = modeling.GPT4RoIForConditionalGeneration.encode_image
    encode_prepared = modeling.GPT4RoIForConditionalGeneration.encode_prepared
    project_image_tokens = modeling.GPT4RoIForConditionalGeneration.project_image_tokens

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        settings = vllm_config.model_config
        if settings.tokenizer_mode != MODE:
            raise InputError(
                f"{settings.model}: its prompts are written by its own processor; add --tokenizer-mode {MODE} "
                f"(in Python tokenizer_mode={MODE!r})"
            )
        self.config, self.dtype = settings.hf_config, settings.dtype
        text_config = self.config.text_config
        interface: Any = self  # what vLLM's bases bring has no types without vLLM
        placeholders = [self.config.image_token_id, self.config.region_token_id]
        interface.configure_mm_token_handling(vocab_size=text_config.vocab_size, mm_token_ids=placeholders)
        with interface._mark_tower_model(vllm_config, {"image", "region"}):
            for name, part in zip(ENCODERS, modeling.build_encoders(self.config), strict=True):
                setattr(self, name, _for_inference(part, self.dtype))
        with interface._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config, hf_config=text_config, prefix=maybe_prefix(prefix, "language_model")
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors
        self._images: OrderedDict[bytes, EncodedImage] = OrderedDict()

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Returns nothing: the renderer writes prompts without vLLM's templates."""
        return None

    @property
    def device(self) -> torch.device:
        """Where the encoders are."""
        return next(self.region_encoder.parameters()).device

    def get_mm_mapping(self) -> MultiModelKeys:
        """Returns which modules are the language model's, for LoRA."""
        tower, *connectors = ENCODERS
        return MultiModelKeys.from_string_field("language_model", connectors, tower)

    @torch.inference_mode()
    def embed_multimodal(self, **kwargs: Any) -> list[torch.Tensor]:
        """Returns the embeddings of items of one modality, float[P, D] of an image or float[k, D] of a region."""
        if "image_pixel_values" in kwargs:
            images = self._encoded(kwargs["image_digest"], kwargs["image_pixel_values"])
            return [image.image_features.to(self.dtype) for image in images]
        images = self._encoded(kwargs["region_digest"], kwargs["region_pixel_values"])
        features: list[torch.Tensor] = [torch.empty(0)] * len(images)
        for image in {id(image): image for image in images}.values():
            rows = [row for row, other in enumerate(images) if other is image]
            fields = [kwargs[f"region_{name}"][rows] for name in FIELDS if f"region_{name}" in kwargs]
            embedded = image.region_features(*fields).unflatten(0, (len(rows), -1))
            for row, feature in zip(rows, embedded.to(self.dtype), strict=True):
                features[row] = feature
        return features

    def _encoded(self, digests: torch.Tensor, pixel_values: torch.Tensor) -> list[EncodedImage]:
        """Returns the image of each row, uint8[N, 32] and float[N, 3, S, S]; those that are not held are encoded."""
        keys = [row.numpy().tobytes() for row in digests.cpu()]
        rows = {key: row for row, key in enumerate(keys) if key not in self._images}
        height, width = pixel_values.shape[-2:]
        prepared = (PreparedImage({"pixel_values": pixel_values[row]}, (height, width)) for row in rows.values())
        self._images.update(zip(rows, encode_images(self, prepared), strict=True))
        images = [self._images[key] for key in keys]
        for key in keys:
            self._images.move_to_end(key)
        while len(self._images) > MAX_IMAGES:
            self._images.popitem(last=False)
        return images

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> Any:
        """Runs the language model over embeddings in which images and regions stand already."""
        inputs_embeds = None if intermediate_tensors is not None else inputs_embeds
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Returns float[N, V]."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Fills the model; raises InputError where an encoder's tensors are missing."""
        seen: set[str] = set()

        def noted() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                seen.add(name)
                yield name, tensor

        loaded = AutoWeightsLoader(self).load_weights(noted())
        expected = {f"{part}.{name}" for part in ENCODERS for name in getattr(self, part).state_dict()}
        missing = sorted(expected - seen)
        if missing:
            raise InputError(
                f"{len(missing)} tensors are missing in the weights: {', '.join(missing[:3])}, …; a folder without its "
                "vision tower is made complete by `gpt4roi convert`"
            )
        return loaded


def _for_inference(part: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Returns an encoder in the dtype in which the package computes it, see devices.move_for_inference."""
    on_cpu = next(part.parameters()).device.type == "cpu"
    return part.eval().to(torch.float32 if on_cpu else dtype)
