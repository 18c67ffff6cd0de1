"""Regions on a pretrained vision-language model: its class with a region encoder, and the base itself unchanged.

The base keeps its class, its tensors, its processor and its folder. Hooks on the blocks of its vision tower take the
feature maps while the base looks at its images, and the regions' embeddings take the place of those of `<bbox>` just
before its decoder. Without boxes the hooks do nothing.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from gpt4roi.constants import IGNORE_INDEX
from gpt4roi.errors import InputError
from gpt4roi.io.json_files import read_json_object
from gpt4roi.io.model_folders import REGION_FOLDER
from gpt4roi.io.weight_files import damaged_file_named, find_weight_files, read_tensors
from gpt4roi.models.compat import CACHE, cached_length, execution_device_and_dtype
from gpt4roi.models.frozen_prefix import ATTENTION_TYPES
from gpt4roi.models.light_encoder import LightRegionEncoder, Standardise
from gpt4roi.models.loss import cross_entropy, next_tokens
from gpt4roi.models.placeholders import scatter, validate_unit_scale
from gpt4roi.models.pretrained import check_missing_keys
from gpt4roi.models.view_encoder import Frames, RegionConfig, ViewRegionEncoder
from gpt4roi.models.vlm_families import TOWERS, View, blocks_of, default_levels, require_known_family, with_frames

OF_PIXELS = ("pixel_values", "pixel_attention_mask")
CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""Inside REGION_FOLDER, where loaders of the base do not look."""


@dataclass
class _Run:
    """One forward or generation with boxes.

    Attributes:
        states: Of the tower's blocks, by level, until the tower has ended.
        views: What the tower saw, of all images.
        features: float[M * k, D], once computed.
        samples: Of a generation, how many prompts it began with; beams and sequences to return are copies of them.
        rows: What the decoder gets in place of the tokens' embeddings, as of RegionMixin.decode.
        stops: Whether the run ends before the decoder, by raising _DecoderInputs.
    """

    model: Any
    boxes: list[torch.Tensor]
    frames: Frames = ()
    masks: list[torch.Tensor] | None = None
    samples: int | None = None
    rows: dict[str, Any] | None = None
    stops: bool = False
    input_ids: torch.Tensor | None = None
    states: dict[int, torch.Tensor] = field(default_factory=dict)
    views: list[View] = field(default_factory=list)
    features: torch.Tensor | None = None


class _DecoderInputs(Exception):  # noqa: N818 (no error: the way out of a base's forward)
    """What a base would have called its decoder with."""


_RUN: ContextVar[_Run | None] = ContextVar("gpt4roi_regions", default=None)


class RegionMixin:
    """What the class of a base gets in addition; see region_class.

    Attributes:
        region_encoder: The module that is added.
        region_config: Its configuration.
    """

    region_encoder: ViewRegionEncoder
    region_config: RegionConfig

    @property
    def region_token_id(self) -> int:
        """Id of `<bbox>`."""
        return self.region_config.region_token_id

    def add_region_encoder(self, config: RegionConfig) -> None:
        """Adds a fresh region encoder, and the hooks on the tower's blocks, the tower and the decoder."""
        base = cast(Any, self)
        self.region_config = config
        self.region_encoder = ViewRegionEncoder(config)
        weight = base.get_input_embeddings().weight
        if not weight.is_meta:
            self.region_encoder.init_output_rms(float(weight.detach().float().pow(2).mean().sqrt()))
        self.region_encoder.to(weight.device, weight.dtype)
        tower = base.get_encoder("image")
        # Bound methods, so that a copy of the model gets hooks of its own.
        for level, index in enumerate(config.levels):
            blocks_of(tower)[index].register_forward_hook(functools.partial(self._after_block, level))
        tower.register_forward_hook(self._after_tower, with_kwargs=True)
        base.get_decoder().register_forward_pre_hook(self._before_decoder, with_kwargs=True)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (LightRegionEncoder, Standardise)):
            module.reset_parameters()
        else:
            cast(Any, super())._init_weights(module)

    def __reduce__(self) -> tuple:
        return _blank, (type(self).__mro__[2],), self.__dict__  # the class itself can be found under no name

    def _current_run(self) -> _Run | None:
        run = _RUN.get()
        return run if run is not None and run.model is self else None

    def _after_block(self, level: int, block: nn.Module, args: tuple, output: Any) -> None:
        if (run := self._current_run()) is not None:
            run.states[level] = output[0] if isinstance(output, tuple) else output

    def _after_tower(self, tower: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if (run := self._current_run()) is not None:
            call = kwargs | ({"pixel_values": args[0]} if args else {})
            states = [run.states[level] for level in sorted(run.states)]
            run.views += TOWERS[tower.config.model_type](states, tower, call)
            run.states, run.features = {}, None

    def _before_decoder(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        """Puts the regions' embeddings in the place of `<bbox>`."""
        run = self._current_run()
        if run is not None and run.stops:
            raise _DecoderInputs(kwargs)
        if run is not None and run.rows is not None:
            return args, kwargs | run.rows
        if run is None or run.input_ids is None:
            return None
        embeds = kwargs["inputs_embeds"]
        mask = (run.input_ids == self.region_token_id).to(embeds.device)
        # A later step of a generation has no region, also where the model writes `<bbox>` of its own accord.
        if embeds.shape[1] == 1 or not (mask.any() or torch.is_grad_enabled()):
            return None
        if run.features is None:
            run.features = self._encode_regions(run)
        return args, kwargs | {"inputs_embeds": scatter(embeds, mask, self._rows_in_order(run, mask))}

    def _encode_regions(self, run: _Run) -> torch.Tensor:
        if not any(len(rows) for rows in run.boxes):
            return self.region_encoder([], [])
        validate_unit_scale(run.boxes)
        device, _ = execution_device_and_dtype(self.region_encoder)
        boxes = [rows.to(device) for rows in run.boxes]
        if len(run.frames) != len(boxes):
            raise InputError(f"{len(run.frames)} images but boxes for {len(boxes)}; give one tensor an image")
        return self.region_encoder(cast(Any, with_frames(run.views, run.frames)), boxes, run.masks)

    def _rows_in_order(self, run: _Run, mask: torch.Tensor) -> torch.Tensor:
        """Returns float[N, D], a row for each `<bbox>` of the batch; beams repeat the rows of their sample."""
        rows = cast(torch.Tensor, run.features)
        copies = len(mask) // (run.samples or len(mask))
        counts = mask.sum(1).tolist()[::copies]
        if sum(counts) != len(rows):
            each = self.region_config.tokens_per_region
            of_each = f" of {each} tokens each" if each > 1 else ""
            raise InputError(f"{sum(counts)} <bbox> tokens in the batch but {len(rows) // each} boxes{of_each}")
        return torch.cat([part for part in rows.split(counts) for _ in range(copies)])

    def token_types(self, input_ids: torch.Tensor, given: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Returns what the base's processor says about each token: int64[B, T], 1 where an image's token stands.

        PaliGemma's are 0 for what is seen in both directions, the prompt, and 1 from the answer on.
        """
        config: Any = cast(Any, self).config
        is_image = (input_ids == config.image_token_id).long()
        if config.model_type == "paligemma":
            labels = given.get("labels")
            answers = torch.zeros_like(is_image) if labels is None else (labels != IGNORE_INDEX).long().cumsum(1) > 0
            return {"token_type_ids": answers.long()}
        known = inspect.signature(cast(Any, super()).forward).parameters
        return {name: is_image for name in ("token_type_ids", "mm_token_type_ids") if name in known}

    @contextmanager
    def _running(self, run: _Run) -> Iterator[_Run]:
        token = _RUN.set(run)
        try:
            yield run
        finally:
            _RUN.reset(token)

    def encode_views(self, view_frames: Frames, **image_inputs: Any) -> tuple[Any, list[list[View]]]:
        """Runs the tower over K images.

        Returns:
            The base's own image outputs (its mm_encoder_outputs["image"]), and the views of each image.
        """
        base: Any = cast(Any, self).base_model
        known = inspect.signature(base.get_image_features).parameters
        with self._running(_Run(self, [], view_frames)) as run:
            taken = {name: value for name, value in image_inputs.items() if name in known}
            outputs = base.get_image_features(**taken, return_dict=True)
        return outputs, with_frames(run.views, view_frames)

    def get_region_features(
        self,
        pixel_values: torch.Tensor,
        boxes: list[torch.Tensor],
        masks: list[torch.Tensor] | None = None,
        view_frames: Frames = (),
        **image_inputs: Any,
    ) -> torch.Tensor:
        """Returns the embeddings of regions, float[M * k, D].

        Args:
            pixel_values: As the base's processor makes them.
            boxes: list of K float[N_i, 4], xyxy in [0, 1].
            masks: As of GPT4RoIForConditionalGeneration.
            view_frames: As our processor makes them.
            **image_inputs: Further tensors of the base's processor about the images.
        """
        views = self.encode_views(view_frames, pixel_values=pixel_values, **image_inputs)[1]
        return self.region_encoder(cast(Any, views), boxes, masks)

    @property
    def shares_prefix(self) -> bool:
        """Whether prompts that begin alike may share keys and values: not where a prompt is read in both directions."""
        config: Any = cast(Any, self).config
        kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
        return config.model_type != "paligemma" and kinds <= ATTENTION_TYPES

    accepts_loss_kwargs = True
    """Whether the loss is divided by the targets of all micro-batches of a step, as the Trainer counts them."""

    packs_sequences = False
    """Whether tokens of several sequences may stand in one row of the decoder; see generation.packed."""

    def encode_prepared(self, inputs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Any, list[list[View]]]]:
        """Yields what the base's forward wants to know of each image instead of its pixels, and its views.

        inputs: RegionProcessor.image_inputs of each.
        """
        for one in inputs:
            given = {name: value.to(cast(Any, self).device) for name, value in one.items() if name != "view_frames"}
            if given["pixel_values"].is_floating_point():
                given["pixel_values"] = given["pixel_values"].to(cast(Any, self).dtype)
            outputs, views = self.encode_views([one["view_frames"]], **given)
            rest = {name: value for name, value in given.items() if name not in OF_PIXELS}
            yield rest | {"mm_encoder_outputs": {"image": outputs}}, views

    def prompt_rows(self, input_ids: torch.Tensor, image: Any, region_features: torch.Tensor | None) -> torch.Tensor:
        """Returns what the decoder reads of each token of a prompt, float32[T, R].

        A row holds the embedding, the token's type, its three positions where the base counts in three, and what is
        added to it in the first layers where the base does that. So whatever is cut, joined or cached of rows stays
        complete.

        Args:
            input_ids: int64[T].
            image: As of encode_prepared, or None.
            region_features: float[M * k, D].
        """
        ids = input_ids[None].to(cast(Any, self).device)
        given = self.token_types(ids, {}) | (image or {})
        try:
            with self._running(_Run(self, [], stops=True)):
                cast(Any, super()).forward(input_ids=ids, use_cache=False, **given)
        except _DecoderInputs as found:
            (inputs,) = found.args
        embeds = inputs["inputs_embeds"]
        if region_features is not None and len(region_features):
            embeds = scatter(embeds, ids == self.region_token_id, region_features)
        return torch.cat([embeds[0].float(), *self._further_columns(inputs, given, ids.shape[1])], dim=1)

    def _further_columns(self, inputs: dict[str, Any], given: dict[str, Any], length: int) -> list[torch.Tensor]:
        embeds = inputs["inputs_embeds"]
        types = given.get("token_type_ids", embeds.new_zeros(1, length))
        columns = [types[0, :, None].float()]
        if self._counts_in_three:
            positions = inputs.get("position_ids")
            if positions is None or positions.ndim < 3:
                positions = torch.arange(length, device=embeds.device).expand(3, 1, length)
            columns.append(positions[-3:, 0].T.float())
        if self._num_deepstack:
            mask, added = inputs.get("visual_pos_masks"), inputs.get("deepstack_visual_embeds")
            for level in range(self._num_deepstack):
                column = torch.zeros_like(embeds[0], dtype=torch.float32)
                if mask is not None and added is not None:
                    column[mask[0]] = added[level].float()
                columns.append(column)
        return columns

    @property
    def _counts_in_three(self) -> bool:
        rope = getattr(cast(Any, self).config.get_text_config(), "rope_parameters", None) or {}
        return "mrope_section" in rope

    @property
    def _num_deepstack(self) -> int:
        return len(getattr(cast(Any, self).config.vision_config, "deepstack_visual_indexes", None) or ())

    def next_rows(self, tokens: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Returns the rows float32[N, 1, R] of tokens int64[N] of answers; before: float32[N, R], the rows before."""
        width = self.region_config.hidden_size
        rows = torch.zeros_like(before)
        rows[:, :width] = cast(Any, self).get_input_embeddings()(tokens).float()
        rows[:, width] = float(cast(Any, self).config.model_type == "paligemma")
        if self._counts_in_three:
            rows[:, width + 1 : width + 4] = before[:, width + 1 : width + 4] + 1
        return rows[:, None]

    def decode(self, rows: torch.Tensor, cache: Any, logits_to_keep: int | torch.Tensor = 1) -> torch.Tensor:
        """Returns the logits float[B, T', V] of tokens that follow what a cache holds, which grows by them.

        Args:
            rows: float32[B, T, R], as of prompt_rows and next_rows.
            cache: A KV cache.
            logits_to_keep: As of transformers' language models.
        """
        base: Any = super()
        width, dtype = self.region_config.hidden_size, base.get_input_embeddings().weight.dtype
        replaced: dict[str, Any] = {"inputs_embeds": rows[..., :width].to(dtype)}
        given: dict[str, Any] = {}
        if "token_type_ids" in inspect.signature(base.forward).parameters and not cached_length(cache):
            given["token_type_ids"] = rows[..., width].long()
        start = width + 1
        if self._counts_in_three:
            given["position_ids"] = rows[..., start : start + 3].permute(2, 0, 1).long()
            start += 3
        if self._num_deepstack:
            levels = rows[..., start:].unflatten(2, (self._num_deepstack, width)).to(dtype)
            mask = (levels != 0).flatten(2).any(2)
            replaced["visual_pos_masks"] = mask
            replaced["deepstack_visual_embeds"] = [levels[:, :, level][mask] for level in range(self._num_deepstack)]
        ids = torch.zeros(rows.shape[:2], dtype=torch.int64, device=rows.device)
        with self._running(_Run(self, [], rows=replaced)):
            options = {CACHE: cache, "logits_to_keep": logits_to_keep}
            return base.forward(input_ids=ids, use_cache=True, **options, **given).logits

    @torch.no_grad()
    def calibrate(self, feature_maps: list[list[View]], boxes: list[torch.Tensor] | None = None) -> None:
        """Lets the region encoder measure the tower's channels and the boxes, before any training."""
        self.region_encoder.calibrate(feature_maps, boxes)

    def generate(
        self, *args: Any, boxes: Any = None, masks: Any = None, view_frames: Frames = (), **kwargs: Any
    ) -> Any:
        """Generates as the base does; boxes, masks and view_frames: as of get_region_features."""
        base: Any = super()
        if boxes is None:
            return base.generate(*args, **kwargs)
        ids = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
        if ids is not None:  # the base counts positions from these before its first forward
            kwargs = self.token_types(ids, {}) | kwargs
        with self._running(_Run(self, list(boxes), view_frames, masks, None if ids is None else len(ids))):
            return base.generate(*args, **kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Saves the base as it saves itself, and the region encoder in a folder beside its files."""
        state = kwargs.pop("state_dict", None) or cast(Any, self).state_dict()
        prefix = f"{REGION_FOLDER}."
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        rest = {name: value for name, value in state.items() if not name.startswith(prefix)}
        cast(Any, super()).save_pretrained(save_directory, *args, state_dict=rest, **kwargs)
        if kwargs.get("is_main_process", True):
            folder = Path(save_directory, REGION_FOLDER)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CONFIG).write_text(json.dumps(asdict(self.region_config), indent=2) + "\n", encoding="utf-8")
            save_file({name: value.contiguous() for name, value in own.items()}, folder / WEIGHTS, {"format": "pt"})


@functools.cache
def region_class(base: Any) -> Any:
    """Returns a base's class with regions.

    It keeps name and module, by which transformers converts, saves and opens the base's tensors.
    """
    known = inspect.signature(base.forward)

    @functools.wraps(base.forward)
    def forward(
        self: Any,
        *args: Any,
        boxes: list[torch.Tensor] | None = None,
        masks: list[torch.Tensor] | None = None,
        view_frames: Frames = (),
        logits_at_targets_only: bool = False,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Runs the base, with the embeddings of boxes in the place of `<bbox>`; further arguments are the base's."""
        if num_items_in_batch is not None and not logits_at_targets_only:
            kwargs["num_items_in_batch"] = num_items_in_batch
        run = self._current_run()
        if boxes is None and self.training and torch.is_grad_enabled():
            boxes = []  # a batch of text alone: the region encoder's gradients are zero, not missing
        if run is None and boxes is not None:
            run = _Run(self, list(boxes), view_frames, masks)
        with self._running(run) if run is not None else nullcontext():
            return _run_base(base, self, run, args, kwargs, logits_at_targets_only, num_items_in_batch)

    added = {"boxes": None, "masks": None, "view_frames": (), "logits_at_targets_only": False}
    own = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value) for name, value in added.items()]
    *named, rest = known.parameters.values()  # **kwargs, which transformers asks of every model, come last
    cast(Any, forward).__signature__ = known.replace(parameters=[*named, *own, rest])
    return type(base.__name__, (RegionMixin, base), {"__module__": base.__module__, "forward": forward})


def _run_base(
    base: Any, model: Any, run: _Run | None, args: tuple, kwargs: dict[str, Any], at_targets_only: bool, items: Any
) -> Any:
    """Runs a base's own forward; with at_targets_only, logits are computed only where the next token has a label."""
    if run is not None:
        run.input_ids = args[0] if args else kwargs.get("input_ids")
        if run.input_ids is None:
            raise InputError("boxes need input_ids, in which <bbox> stands; inputs_embeds do not show where")
        if kwargs.get("pixel_values") is not None:
            run.views = []
        kwargs = model.token_types(run.input_ids, kwargs) | kwargs
    if not at_targets_only or kwargs.get("labels") is None:
        return base.forward(model, *args, **kwargs)
    supervised, targets = next_tokens(kwargs.pop("labels"))
    columns = supervised.any(0).nonzero().flatten()
    if not len(columns):
        columns = supervised.new_zeros(1, dtype=torch.int64)  # no target at all still has a loss, which is 0
    output = base.forward(model, *args, **kwargs, logits_to_keep=columns, use_cache=False)
    logits = output.logits[supervised[:, columns].to(output.logits.device)]
    return CausalLMOutputWithPast(loss=cross_entropy(logits, targets, items), logits=logits)


def _blank(base: type) -> Any:
    return object.__new__(region_class(base))


def add_regions(model: Any, region_token_id: int, **settings: Any) -> Any:
    """Puts a fresh region encoder onto an opened base, in place, and returns it; nothing of the base changes.

    Args:
        model: An image-text-to-text model of transformers.
        region_token_id: Id of `<bbox>` in its tokenizer; where the base's table has no such row, rows are added. The
            row is never read.
        **settings: Fields of RegionConfig that differ from the defaults; None leaves one as it is.

    Raises:
        InputError: The base is of no known family.
    """
    tower = model.get_encoder("image")
    require_known_family(model.config.model_type, tower.config.model_type, type(model).__name__)
    if region_token_id >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(region_token_id + 1, mean_resizing=False)
    known = {name: value for name, value in settings.items() if value is not None}
    known.setdefault("levels", default_levels(model.config, len(blocks_of(tower))))
    known.setdefault("channels", getattr(tower.config, "embed_dim", None) or tower.config.hidden_size)
    width = model.get_input_embeddings().weight.shape[1]
    return _extended(model, RegionConfig(region_token_id=region_token_id, hidden_size=width, **known))


def _extended(model: Any, config: RegionConfig) -> Any:
    kind: Any = type(model)
    model.__class__ = region_class(kind)
    model.add_region_encoder(config)
    return model


def open_regions_vlm(folder: str | Path, **kwargs: Any) -> Any:
    """Opens a folder that `save_pretrained` wrote, base and region encoder; kwargs: of from_pretrained.

    Raises:
        InputError: A file is missing or damaged, or the tensors are not those of the model.
    """
    inside = Path(folder, REGION_FOLDER)
    values, weights = read_json_object(inside / CONFIG), read_tensors(inside)
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    base: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    find_weight_files(Path(folder))
    with damaged_file_named(folder):
        model, info = base.from_pretrained(
            str(folder), output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    check_missing_keys(str(folder), info)
    try:
        model = _extended(model, RegionConfig(**values | {"levels": tuple(values["levels"])}))
        model.region_encoder.load_state_dict(weights)
    except (TypeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{inside}: {CONFIG} and {WEIGHTS} do not describe one region encoder ({reason}); copy both again"
        ) from None
    return model
