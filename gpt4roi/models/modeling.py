"""GPT4RoIForConditionalGeneration: embed the tokens, encode images and boxes, replace the placeholders, decode.

inputs_embeds = language_model.embed_tokens(input_ids)                                         # embed
image_features, region_features = mm_projector(last_map), region_encoder(feature_maps, boxes)  # encode
inputs_embeds[input_ids == <im_patch>], inputs_embeds[input_ids == <bbox>] = image_features, region_features
logits = language_model(inputs_embeds)                                                         # decode
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import ModelOutput

from gpt4roi.errors import InputError
from gpt4roi.models.compat import CACHE, cached_length, execution_device_and_dtype
from gpt4roi.models.configuration import GPT4RoIConfig
from gpt4roi.models.frozen_prefix import hidden_states, prefix_length
from gpt4roi.models.light_encoder import LightProjector, LightRegionEncoder
from gpt4roi.models.loss import cross_entropy, next_tokens
from gpt4roi.models.placeholders import (
    match_images_to_samples,
    placeholder_ids,
    positions,
    scatter,
    segment_mask,
    validate_unit_scale,
)
from gpt4roi.models.pretrained import GPT4RoIPreTrainedModel
from gpt4roi.models.region_encoder import FeatureFusion, RegionEncoder, RegionPooler
from gpt4roi.models.region_encoder_base import RegionEncoderBase
from gpt4roi.models.vision_tower import VisionTower, flatten_map

PREFILL_INPUTS = ("pixel_values", "boxes", "masks", "image_tokens", "feature_maps", "segment_ids")
"""Inputs of the first step of a generation only: afterwards they are in the KV cache."""

LOGIT_POSTPROCESSING_KEYS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings of language models that do more to their logits than the output layer does."""


@dataclass
class GPT4RoIOutput(CausalLMOutputWithPast):
    """What the model returns, beside the KV cache, hidden states and attentions of its language model.

    Attributes:
        loss: Mean cross-entropy.
        logits: float[B, T, V]; float[N, V], rows in batch order, with logits_at_targets_only.
        image_features: float[K, P, D].
        region_features: float[M * k, D], row j is the j-th <bbox> of the batch; a region has k of them.
    """

    image_features: torch.Tensor | None = None
    region_features: torch.Tensor | None = None


def build_encoders(
    config: GPT4RoIConfig, vision_backbone: PreTrainedModel | None = None
) -> tuple[VisionTower, nn.Module, RegionEncoderBase]:
    """Builds what turns images and boxes into embeddings: the tower, the projector and the region encoder.

    vision_backbone: a built one to use instead of a fresh one from the configuration.
    """
    tower = VisionTower(config, vision_backbone)
    if config.projector_type == "light":
        projector: nn.Module = LightProjector(config, tower)
    else:
        projector = nn.Linear(tower.hidden_size, config.text_config.hidden_size)
    encoder = LightRegionEncoder if config.region_encoder_type == "light" else RegionEncoder
    return tower, projector, encoder(config, tower)


class GPT4RoIForConditionalGeneration(GPT4RoIPreTrainedModel, GenerationMixin):
    """Answers about images and regions of them.

    Args:
        vision_backbone: A built backbone to use instead of a fresh one from the configuration.
        language_model: Likewise.
    """

    config: GPT4RoIConfig
    shares_prefix = packs_sequences = True
    """Whether prompts that begin alike may share keys and values, and sequences one row of the decoder."""
    uniform_forward = False
    """Whether batches without image or box go through the same modules as others; see RegionEncoderBase."""

    config_class = GPT4RoIConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012 (lists, as transformers declares them)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _no_split_modules = ["RegionEncoder", "LightRegionEncoder"]  # noqa: RUF012

    def __init__(
        self,
        config: GPT4RoIConfig,
        vision_backbone: PreTrainedModel | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        self.vision_tower, self.mm_projector, self.region_encoder = build_encoders(config, vision_backbone)
        config.image_seq_length = config.image_seq_length or self.vision_tower.num_image_tokens
        self.language_model = language_model or AutoModelForCausalLM.from_config(config.text_config)
        built = next(self.region_encoder.parameters()).device.type != "meta"  # it drew its weights as it was built
        for part in (vision_backbone, language_model, self.region_encoder if built else None):
            for module in part.modules() if part is not None else ():
                # transformers' mark of what must not be drawn anew.
                cast(Any, module)._is_hf_initialized = True
        self.post_init()

    def initialize_weights(self) -> None:
        """Draws what no checkpoint gave: the tower and the language model their parts, as they do alone, then ours.

        transformers takes modules without parameters of their own for loaded where the outermost class is not its own,
        and would leave what theirs and ours draw for their children as it lies in memory.
        """
        for part in (self.vision_tower.backbone, self.language_model):
            part.initialize_weights()
        super().initialize_weights()

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        """Goes over every module of ours; torch.nn.init, by which they draw, leaves alone what was loaded."""
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draws fresh weights for our own modules; the tower and the language model draw their own."""
        if isinstance(module, (FeatureFusion, RegionPooler, LightRegionEncoder, LightProjector)) or (
            module is self.mm_projector
        ):
            cast(Any, module).reset_parameters()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the language model's token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the language model's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Returns the language model's output layer."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the language model's output layer."""
        self.language_model.set_output_embeddings(new_embeddings)

    def set_uniform_forward(self, uniform: bool) -> None:
        """Sets whether every batch must go through the same modules, as DeepSpeed needs it."""
        self.uniform_forward = uniform
        for module in self.modules():  # adapters hold the region encoder more than once
            if isinstance(module, RegionEncoderBase):
                module.set_uniform_forward(uniform)

    def encode_image(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Returns the frozen tower's outputs, to be cached and given to forward or generate instead of pixel_values.

        Args:
            pixel_values: float[K, 3, S, S].

        Returns:
            image_tokens float[K, P, C], and feature_maps, list of float[K, C_l, H_l, W_l].
        """
        return self.vision_tower(pixel_values.to(*execution_device_and_dtype(self.vision_tower)))

    encode_picture = encode_image  # the name of version 0.1

    def get_image_features(self, pixel_values: torch.Tensor, return_dict: bool | None = None, **kwargs: Any) -> Any:
        """Returns the projected image tokens, float[K, P, D]; pixel_values: float[K, 3, S, S].

        With return_dict they are the `pooler_output` of a BaseModelOutputWithPooling, as transformers has them, beside
        the tower's own tokens float[K, P, C]; with return_dict=False both as a tuple.
        """
        tokens = self.encode_image(pixel_values)[0]
        features = self.project_image_tokens(tokens)
        if return_dict is None:
            return features
        output = BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=features)
        return output if return_dict else output.to_tuple()

    def get_region_features(
        self, pixel_values: torch.Tensor, boxes: list[torch.Tensor], masks: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Returns the embeddings of regions, float[M * k, D]; arguments as of forward."""
        return self.region_encoder(self.encode_image(pixel_values)[1], boxes, masks)

    @property
    def region_token_id(self) -> int:
        """Id of `<bbox>`."""
        return self.config.region_token_id

    def encode_prepared(
        self, inputs: Sequence[Mapping[str, torch.Tensor]]
    ) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
        """Yields of each image its projected tokens float[P, D] and its feature maps, float[1, C_l, H_l, W_l] each.

        inputs: The processor's image_inputs of each.
        """
        tokens, maps = self.encode_image(torch.stack([one["pixel_values"] for one in inputs]))
        features = self.project_image_tokens(tokens)
        device, _ = execution_device_and_dtype(self.region_encoder)
        for row in range(len(inputs)):
            yield features[row], [level[row : row + 1].to(device) for level in maps]

    def prompt_rows(
        self, input_ids: torch.Tensor, image_features: torch.Tensor | None, region_features: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns what the language model reads of each token of a prompt: its embedding, float[T, D].

        Args:
            input_ids: int64[T].
            image_features: float[P, D].
            region_features: float[M * k, D].
        """
        ids = input_ids.to(self.device)
        embeddings = self.get_input_embeddings()(ids)
        for token, features in (
            (self.config.image_token_id, image_features),
            (self.config.region_token_id, region_features),
        ):
            mask = ids == token
            expected, given = int(mask.sum()), 0 if features is None else len(features)
            if expected != given:
                raise ValueError(f"the prompt has {expected} tokens {token} but {given} embeddings for them")
            if features is not None and expected:
                embeddings = scatter(embeddings[None], mask[None], features)[0]
        return embeddings

    def next_rows(self, tokens: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Returns the rows float[N, 1, D] of tokens int64[N] that follow others, whose rows are float[N, D]."""
        return self.get_input_embeddings()(tokens)[:, None]

    def decode(self, rows: torch.Tensor, cache: Cache, logits_to_keep: int | torch.Tensor = 1) -> torch.Tensor:
        """Returns the logits float[B, T', V] of tokens that follow what a cache holds, which grows by them.

        rows: float[B, T, D], as of prompt_rows; logits_to_keep: as of transformers' language models.
        """
        options: dict[str, Any] = {CACHE: cache, "logits_to_keep": logits_to_keep}
        return self.language_model(inputs_embeds=rows, use_cache=True, **options).logits

    def calibrate(self, feature_maps: list[torch.Tensor], boxes: list[torch.Tensor] | None = None) -> None:
        """Lets the light encoder and projector measure the tower's channels, before any training.

        Args:
            feature_maps: list of float[K, C_l, H_l, W_l].
            boxes: list of float[N_i, 4], xyxy in [0, 1].
        """
        if isinstance(self.region_encoder, LightRegionEncoder):
            self.region_encoder.calibrate(feature_maps, boxes)
        if isinstance(self.mm_projector, LightProjector):
            self.mm_projector.calibrate(feature_maps)

    def project_image_tokens(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """Returns image features float[K, P, D] of `encode_image`'s image tokens, float[K, P, C]."""
        return self.mm_projector(image_tokens.to(*execution_device_and_dtype(self.mm_projector)))

    def embed(
        self,
        input_ids: torch.Tensor | None,
        pixel_values: torch.Tensor | None = None,
        boxes: list[torch.Tensor] | None = None,
        image_tokens: torch.Tensor | None = None,
        feature_maps: list[torch.Tensor] | None = None,
        has_past: bool = False,
        inference: bool = False,
        inputs_embeds: torch.Tensor | None = None,
        masks: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Embeds a prompt with its images and regions.

        Arguments are as in forward; inputs_embeds alone are searched for placeholders. Besides, has_past: the images'
        own tokens may already be in the KV cache; inference: a prompt without image may skip our modules. In training
        and evaluation it may not: other processes' batches hold images, and wait for this one where a sharded module is
        called.

        Returns:
            inputs_embeds float[B, T, D], image_features float[K, P, D] and region_features float[M, D]; the features
            are None where there was no need for them.

        Raises:
            InputError: Tokens, images and boxes do not match.
        """
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        elif input_ids is None:
            input_ids = placeholder_ids(inputs_embeds, self.get_input_embeddings(), self.config)
        input_ids = cast(torch.Tensor, input_ids)
        if feature_maps is None and pixel_values is not None:
            image_tokens, feature_maps = self.encode_image(pixel_values)
        if has_past and not feature_maps and not boxes:
            return inputs_embeds, None, None
        image_tokens, feature_maps = self._tower_outputs(inputs_embeds, image_tokens, feature_maps)
        boxes = [image_tokens.new_zeros(0, 4)] * len(image_tokens) if boxes is None else list(boxes)
        validate_unit_scale(boxes)
        if len(boxes) != len(image_tokens):
            raise InputError(f"{len(image_tokens)} images but boxes for {len(boxes)}; give one tensor an image")
        image_length = cast(int, self.config.image_seq_length)
        rows = match_images_to_samples(input_ids, boxes, self.config, image_length, has_past)
        if not rows and inference and not torch.is_grad_enabled():
            return inputs_embeds, None, None
        if rows != list(range(len(boxes))):
            image_tokens, feature_maps = image_tokens[rows], [level[rows] for level in feature_maps]
        image_features = self.project_image_tokens(image_tokens)
        if masks is not None and len(masks) != len(boxes):
            raise InputError(f"masks of {len(masks)} images but boxes of {len(boxes)}; give one tensor an image")
        masks = None if masks is None else [masks[row] for row in rows]
        region_features = self.region_encoder(feature_maps, [boxes[row] for row in rows], masks)
        image_mask = input_ids == self.config.image_token_id
        if not has_past or bool(image_mask.any()):
            inputs_embeds = scatter(inputs_embeds, image_mask, image_features.flatten(0, 1))
        inputs_embeds = scatter(inputs_embeds, input_ids == self.config.region_token_id, region_features)
        return inputs_embeds, image_features, region_features

    def _tower_outputs(
        self, inputs_embeds: torch.Tensor, image_tokens: torch.Tensor | None, feature_maps: list[torch.Tensor] | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Returns image tokens and feature maps also where only the maps are given, or none."""
        if feature_maps:
            return flatten_map(feature_maps[-1]) if image_tokens is None else image_tokens, feature_maps
        tower = self.vision_tower
        if feature_maps is None and self.uniform_forward:
            # Other processes call the tower, and may wait for this one's shard of its weights.
            self.encode_image(inputs_embeds.new_zeros(1, 3, tower.image_size, tower.image_size))
        return inputs_embeds.new_zeros(0, tower.num_image_tokens, tower.hidden_size), []

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        boxes: list[torch.Tensor] | None = None,
        labels: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        feature_maps: list[torch.Tensor] | None = None,
        segment_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        logits_at_targets_only: bool = False,
        cache: Cache | None = None,
        masks: list[torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs the model; returns a GPT4RoIOutput, or a tuple of what it holds with return_dict=False.

        Args:
            input_ids: int64[B, T].
            attention_mask: [B, T (+ cached)], 1 where there is a token.
            pixel_values: float[K, 3, S, S], the images of the samples that hold one, in batch order (or one a sample).
            boxes: list of K float[N_i, 4], xyxy in [0, 1]; row j belongs to the sample's j-th region.
            labels: int64[B, T], -100 where there is no supervision.
            image_tokens: With feature_maps, what `encode_image` returned, instead of pixel_values.
            feature_maps: May be empty where the batch holds no image.
            segment_ids: int64[B, T]; segments beyond 0 (the shared prefix) do not see each other.
            position_ids: int64[B, T]; by default numbered from the attention mask.
            past_key_values: The KV cache by its older name.
            inputs_embeds: float[B, T, D], instead of input_ids; with images, their placeholders are replaced too.
            use_cache: Return the KV cache; by default not with labels.
            logits_to_keep: As of transformers' language models; without labels.
            logits_at_targets_only: Compute logits only where the next token has a label.
            cache: The KV cache by its newer name.
            masks: list of K float[N_i, r, r] in [0, 1], the share of each cell of a box that is of the region, for a
                model whose region_shape is `mask`; by default all of each box.
            **kwargs: Go to the language model.

        Raises:
            InputError: Tokens, images and boxes do not match.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give either input_ids or inputs_embeds")
        cache = past_key_values if cache is None else cache
        images = (pixel_values, boxes, image_tokens, feature_maps)
        visual = any(given is not None for given in images)
        length = cast(torch.Tensor, input_ids if inputs_embeds is None else inputs_embeds).shape[1]
        # A decoding step asks the cache nothing, whose length is a tensor where the step is one graph.
        is_step = cache is not None and length == 1 and not visual and segment_ids is None
        past = 0 if is_step else cached_length(cache)
        image_features = region_features = None
        if is_step and inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        elif inputs_embeds is None or visual:
            inputs_embeds, image_features, region_features = self.embed(
                input_ids, *images, past > 0, labels is None, inputs_embeds, masks
            )
        inputs_embeds = cast(torch.Tensor, inputs_embeds)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = positions(attention_mask, inputs_embeds.shape[1])
        if segment_ids is not None:
            attention_mask = self._segment_mask(segment_ids, attention_mask, inputs_embeds, past)
        num_items = kwargs.pop("num_items_in_batch", None)
        # Its name in version 0.2: with "label" in it, transformers' Trainer took it for labels.
        logits_at_targets_only = kwargs.pop("logits_at_labels_only", logits_at_targets_only)
        return_dict = kwargs.pop("return_dict", None)
        inputs = {
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            CACHE: cache,
            "use_cache": False if labels is not None and use_cache is None else use_cache,
            **kwargs,
        }
        if labels is None:
            outputs = self.language_model(**inputs, logits_to_keep=logits_to_keep)
            logits, loss = outputs.logits, None
        else:
            outputs, logits, loss = self._logits_and_loss(inputs, input_ids, labels, num_items, logits_at_targets_only)
        output = GPT4RoIOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_features=image_features,
            region_features=region_features,
            **{CACHE: outputs.get(CACHE)},
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _logits_and_loss(
        self,
        inputs: dict[str, Any],
        input_ids: torch.Tensor | None,
        labels: torch.Tensor,
        num_items: torch.Tensor | int | None,
        at_labels_only: bool,
    ) -> tuple[ModelOutput, torch.Tensor, torch.Tensor]:
        """Returns the language model's outputs, logits, of all tokens or where the next one has a label, and loss."""
        if at_labels_only:
            outputs, logits, targets = self._supervised_logits(inputs, input_ids, labels)
            return outputs, logits, cross_entropy(logits, targets, num_items)
        outputs = self.language_model(**inputs)
        supervised, targets = next_tokens(labels.to(outputs.logits.device))
        return outputs, outputs.logits, cross_entropy(outputs.logits[:, :-1][supervised], targets, num_items)

    def _supervised_logits(
        self, inputs: dict[str, Any], input_ids: torch.Tensor | None, labels: torch.Tensor
    ) -> tuple[ModelOutput, torch.Tensor, torch.Tensor]:
        """Returns the language model's outputs, and logits float[N, V] and targets where the next token has a label."""
        supervised, targets = next_tokens(labels.to(inputs["inputs_embeds"].device))
        if any(getattr(self.config.text_config, name, None) for name in LOGIT_POSTPROCESSING_KEYS):
            columns = supervised.any(0).nonzero().flatten()
            outputs = self.language_model(**inputs, logits_to_keep=columns)
            return outputs, outputs.logits[supervised[:, columns]], targets
        length = prefix_length(self, input_ids, inputs)
        if length:
            states = hidden_states(self.language_model, inputs, length)
            outputs = BaseModelOutputWithPast(last_hidden_state=states)
        else:
            outputs = self.language_model.base_model(**inputs)
        return outputs, self.get_output_embeddings()(outputs.last_hidden_state[:, :-1][supervised]), targets

    def _segment_mask(
        self, segment_ids: torch.Tensor, attention_mask: torch.Tensor | None, inputs_embeds: torch.Tensor, past: int
    ) -> torch.Tensor:
        """Builds the mask of segments; raises InputError where attention or a filled cache does not allow one."""
        attention = self.config.text_config._attn_implementation
        if attention not in (None, "eager", "sdpa"):
            raise InputError(f"segment_ids need attn_implementation eager or sdpa, got {attention}")
        if past:
            raise InputError("segment_ids cannot be used with a cache that holds tokens; give the complete sequence")
        device = inputs_embeds.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs_embeds.dtype
        return segment_mask(segment_ids, attention_mask, dtype)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        is_first_iteration: bool = False,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Gives images and boxes to the first step; later ones find them in the KV cache."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, inputs_embeds=inputs_embeds, **kwargs
        )
        # An assistant's first step is not called one, and transformers has dropped the images by that.
        has_past = cached_length(kwargs.get("cache") or kwargs.get("past_key_values")) > 0
        seen = not is_first_iteration and has_past and kwargs.get("use_cache", True)
        inputs = {name: value for name, value in inputs.items() if name not in PREFILL_INPUTS}
        inputs |= {} if seen else {k: kwargs[k] for k in PREFILL_INPUTS if kwargs.get(k) is not None}
        segment_ids = inputs.pop("segment_ids", None)
        if segment_ids is not None and int(segment_ids.max()) > 1:
            raise InputError("generate answers one question a sample; independent turns need one sample each")
        return inputs

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        """Gives an assistant what it takes: one of text alone sees no images."""
        assistant = kwargs.get("assistant_model")
        if assistant is not None:
            taken = inspect.signature(assistant.forward).parameters
            given = kwargs["model_kwargs"]
            kwargs["model_kwargs"] = {k: v for k, v in given.items() if k not in PREFILL_INPUTS or k in taken}
        return cast(Any, super())._get_candidate_generator(*args, **kwargs)

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.LongTensor, dict[str, Any]]:
        """Repeats lists of images' tensors too, for beams and several answers to one prompt."""
        maps = model_kwargs.get("feature_maps")
        for name in ("boxes", "masks"):
            if expand_size > 1 and model_kwargs.get(name) is not None:
                model_kwargs[name] = [rows for rows in model_kwargs[name] for _ in range(expand_size)]
        if expand_size > 1 and maps is not None:
            model_kwargs["feature_maps"] = [level.repeat_interleave(expand_size, dim=0) for level in maps]
        base = cast(Any, super())  # the mixin asks for a self of its own Protocol, which names no such class
        return base._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **model_kwargs)
