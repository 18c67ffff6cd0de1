"""Regions on a pretrained vision-language model: its class with a region encoder, and the base itself unchanged.

The base keeps its class, its tensors, its processor and its folder. Hooks on the blocks of its vision tower take the
feature maps while the base looks at its images, and the regions' embeddings take the place of those of `<bbox>` just
before its decoder. Without boxes the hooks do nothing.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from gpt4roi.constants import IGNORE_INDEX
from gpt4roi.errors import InputError
from gpt4roi.io.json_files import read_json_object
from gpt4roi.models.light_encoder import LightRegionEncoder, Standardise
from gpt4roi.models.loss import cross_entropy, next_tokens
from gpt4roi.models.placeholders import scatter, validate_unit_scale
from gpt4roi.models.vlm_families import (
    TOWERS,
    WHOLE,
    View,
    blocks_of,
    choose_views,
    default_levels,
    join_tiles,
    require_known_family,
    with_frames,
)

REGION_FOLDER = "region_encoder"
"""Folder inside the base's, which holds the region encoder: loaders of the base do not look there."""

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class RegionConfig:
    """What is added to a base.

    Attributes:
        region_token_id: Id of `<bbox>`.
        levels: Which blocks of the vision tower give feature maps.
        channels: Of these maps.
        hidden_size: D, the width of the base's decoder.
        tokens_per_region: k, the consecutive `<bbox>` tokens that one region takes.
        roi_output_size, roi_sampling_ratio, roi_align_backend, pool_channels, pool_hidden_size: As of GPT4RoIConfig.
    """

    region_token_id: int
    levels: tuple[int, ...]
    channels: int
    hidden_size: int
    tokens_per_region: int = 1
    roi_output_size: int = 4
    roi_sampling_ratio: int = 2
    roi_align_backend: str = "torchvision"
    pool_channels: int = 128
    pool_hidden_size: int = 512


Frames = Sequence[torch.Tensor]
"""Of each image, float[V_i, 4]: where its views lie in it, xyxy in sides of the image."""


class ViewRegionEncoder(LightRegionEncoder):
    """The light region encoder on the views of each image, of any number and size."""

    def __init__(self, config: RegionConfig) -> None:
        count = len(config.levels)
        tower: Any = SimpleNamespace(image_size=1, level_strides=[1] * count, level_channels=[config.channels] * count)
        own: Any = SimpleNamespace(
            **asdict(config),
            text_config=SimpleNamespace(hidden_size=config.hidden_size),
            class_names=None,
            region_shape="box",
        )
        super().__init__(own, tower)

    def pyramid(self, feature_maps: Any) -> Any:
        """Returns the standardised views of each image, tiles joined; list of K lists of View."""
        return [
            [View(self._standardised(view.levels), view.cells, view.frame) for view in join_tiles(views)]
            for views in feature_maps
        ]

    def _standardised(self, levels: list[torch.Tensor]) -> list[torch.Tensor]:
        return [level[0] for level in super().pyramid([level[None] for level in levels])]

    def embed_boxes(
        self, pyramid: Any, boxes: list[torch.Tensor], masks: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Returns float[M * k, D] of boxes, list of K float[N_i, 4], xyxy in [0, 1] of the image; without masks."""
        pooled = [self._pool_image(views, rows) for views, rows in zip(pyramid, boxes, strict=True) if len(rows)]
        return self.embed(torch.cat(pooled)) + self.position(boxes)

    def _pool_image(self, views: list[View], boxes: torch.Tensor) -> torch.Tensor:
        """Pools each box of an image from the view that shows most of it; float[N, sum of C_l, s, s]."""
        boxes = boxes.to(views[0].levels[0].device).float()
        chosen, cells = choose_views(boxes, views)
        rows = [(chosen == number).nonzero().flatten() for number in range(len(views))]
        pooled = [
            self._pool_levels([level[None] for level in view.levels], [cells[row]])
            for view, row in zip(views, rows, strict=True)
            if len(row)
        ]
        return torch.cat(pooled)[torch.argsort(torch.cat(rows))]

    def empty_output(self) -> torch.Tensor:
        """Returns a float[0, D] that depends on all parameters with gradient zero."""
        if not self.uniform_forward:
            return super().empty_output()
        weight = self.reduce.weight
        levels = [weight.new_zeros(channels, 1, 1) for channels, _ in self.level_shapes]
        box = weight.new_tensor([WHOLE]).float()
        return self([[View(levels, (1.0, 1.0), box[0])]], [box])[:0]

    def calibrate(self, feature_maps: Any, boxes: list[torch.Tensor] | None = None) -> None:
        """Measures the channels of each level, and the boxes; feature_maps: list of K lists of View."""
        levels = zip(*(view.levels for views in feature_maps for view in views), strict=True)
        super().calibrate([torch.cat([level.flatten(1).T for level in views]) for views in levels], boxes)


@dataclass
class _Run:
    """One forward or generation with boxes.

    Attributes:
        states: Of the tower's blocks, by level, until the tower has ended.
        views: What the tower saw, of all images.
        features: float[M * k, D], once computed.
    """

    model: Any
    boxes: list[torch.Tensor]
    frames: Frames
    input_ids: torch.Tensor | None = None
    states: dict[int, torch.Tensor] = field(default_factory=dict)
    views: list[View] = field(default_factory=list)
    features: torch.Tensor | None = None


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
        """Puts the regions' embeddings in the place of `<bbox>`; a later step of a generation has none."""
        run = self._current_run()
        if run is None or run.input_ids is None:
            return None
        embeds = kwargs["inputs_embeds"]
        mask = (run.input_ids == self.region_token_id).to(embeds.device)
        training = torch.is_grad_enabled() and embeds.shape[1] > 1
        if not training and not mask.any():
            return None
        if run.features is None:
            run.features = self._encode_regions(run)
        return args, kwargs | {"inputs_embeds": scatter(embeds, mask, self._rows_in_order(run, mask))}

    def _encode_regions(self, run: _Run) -> torch.Tensor:
        if not any(len(rows) for rows in run.boxes):
            return self.region_encoder.empty_output()
        validate_unit_scale(run.boxes)
        boxes = [rows.to(self.region_encoder.place.weight.device) for rows in run.boxes]
        if len(run.frames) != len(boxes):
            raise InputError(f"{len(run.frames)} images but boxes for {len(boxes)}; give one tensor an image")
        return self.region_encoder(cast(Any, with_frames(run.views, run.frames)), boxes)

    def _rows_in_order(self, run: _Run, mask: torch.Tensor) -> torch.Tensor:
        """Returns float[N, D], a row for each `<bbox>` of the batch; beams repeat the rows of their sample."""
        rows = cast(torch.Tensor, run.features)
        counts = mask.sum(1).tolist()
        copies = sum(counts) // max(len(rows), 1)
        if sum(counts) != copies * len(rows):
            each = self.region_config.tokens_per_region
            of_each = f" of {each} tokens each" if each > 1 else ""
            raise InputError(f"{sum(counts)} <bbox> tokens in the batch but {len(rows) // each} boxes{of_each}")
        if copies < 2:
            return rows
        return torch.cat([part for part in rows.split(counts[::copies]) for _ in range(copies)])

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
        names = inspect.signature(type(self).__mro__[2].forward).parameters  # type: ignore[attr-defined]
        return {name: is_image for name in ("token_type_ids", "mm_token_type_ids") if name in names}

    @contextmanager
    def regions(self, boxes: list[torch.Tensor], view_frames: Frames = ()) -> Iterator[_Run]:
        """Within it, this model's `<bbox>` stand for these boxes.

        Args:
            boxes: list of K float[N_i, 4], xyxy in [0, 1]; row j belongs to the image's j-th region.
            view_frames: Of the same K images.
        """
        run = _Run(self, list(boxes), view_frames)
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
        with self.regions([], view_frames) as run:
            taken = {name: value for name, value in image_inputs.items() if name in known}
            outputs = base.get_image_features(**taken, return_dict=True)
        return outputs, with_frames(run.views, view_frames)

    def get_region_features(
        self, pixel_values: torch.Tensor, boxes: list[torch.Tensor], view_frames: Frames, **image_inputs: Any
    ) -> torch.Tensor:
        """Returns the embeddings of regions, float[M * k, D].

        Args:
            pixel_values: As the base's processor makes them.
            boxes: list of K float[N_i, 4], xyxy in [0, 1].
            view_frames: As our processor makes them.
            **image_inputs: Further tensors of the base's processor about the images.
        """
        views = self.encode_views(view_frames, pixel_values=pixel_values, **image_inputs)[1]
        return self.region_encoder(cast(Any, views), boxes)

    @torch.no_grad()
    def calibrate(self, feature_maps: list[list[View]], boxes: list[torch.Tensor] | None = None) -> None:
        """Lets the region encoder measure the tower's channels and the boxes, before any training."""
        self.region_encoder.calibrate(feature_maps, boxes)

    def generate(self, *args: Any, boxes: Any = None, view_frames: Frames = (), **kwargs: Any) -> Any:
        """Generates as the base does; boxes and view_frames: as of `regions`."""
        base: Any = super()
        if boxes is None:
            return base.generate(*args, **kwargs)
        with self.regions(boxes, view_frames):
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
            with self.regions(boxes, view_frames) as run:
                return _run_base(base, self, run, args, kwargs, logits_at_targets_only, num_items_in_batch)
        return _run_base(base, self, run, args, kwargs, logits_at_targets_only, num_items_in_batch)

    own = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in (("boxes", None), ("view_frames", ()), ("logits_at_targets_only", False))
    ]
    by_kind = [[p for p in known.parameters.values() if (p.kind is p.VAR_KEYWORD) == rest] for rest in (False, True)]
    cast(Any, forward).__signature__ = known.replace(parameters=[*by_kind[0], *own, *by_kind[1]])
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
    model.__class__ = region_class(type(model))
    model.add_region_encoder(config)
    return model


def open_regions_vlm(folder: str | Path, **kwargs: Any) -> Any:
    """Opens a folder that `save_pretrained` wrote, base and region encoder; kwargs: of from_pretrained."""
    inside = Path(folder, REGION_FOLDER)
    values = read_json_object(inside / CONFIG)
    base: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(AutoConfig.from_pretrained(str(folder)))]
    model = _extended(
        base.from_pretrained(str(folder), **kwargs), RegionConfig(**values | {"levels": tuple(values["levels"])})
    )
    model.region_encoder.load_state_dict(load_file(inside / WEIGHTS))
    return model
