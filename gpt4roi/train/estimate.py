"""Memory estimate of a training on each GPU, by part, before anything is loaded.

The model is built and run with tensors that have shapes and no content. Weights, gradients and the optimiser's state
are counted; activations are what autograd saves in that run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Trainer
from transformers.training_args import OptimizerNames

from gpt4roi.errors import InputError
from gpt4roi.models import GPT4RoIForConditionalGeneration
from gpt4roi.models.compat import CHECKPOINTING
from gpt4roi.models.frozen_prefix import hidden_states, only_regions_trained
from gpt4roi.models.placeholders import scatter
from gpt4roi.train import sharding
from gpt4roi.train.adapters import add_adapters, cast_frozen_parameters, fully_trained
from gpt4roi.train.arguments import ModelArguments, TrainingArguments
from gpt4roi.train.build_model import (
    check_choices,
    is_on_base,
    meta_model,
    meta_vlm,
    planned_config,
    runnable,
    trainable_modules,
)
from gpt4roi.train.command_line import parse_arguments
from gpt4roi.train.param_groups import PARTS, module_of, set_trainable
from gpt4roi.train.work_dir import Flags

NF4_BLOCK = 64
GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """Batch of one GPU: samples of `tokens` tokens and `regions` boxes each; `supervised` labels in all."""

    samples: int
    tokens: int
    regions: int
    supervised: int


@dataclass(frozen=True)
class ShardingFactors:
    """Number of GPUs that each part is sharded over, and what else sharding does to it."""

    weights: int = 1
    gradients: int = 1
    optimiser: int = 1
    tower: int = 1  # weights of the vision tower
    copied: bool = False  # gradients are copied to be averaged
    bucket: int = 0  # values of the buffers that they are averaged in otherwise
    gathered: int = 0  # weights of at most so many values are also held unsharded
    half: bool = False  # weights and gradients are cast to 16 bits
    master: bool = False  # the optimiser has a float32 copy of what is trained
    flat: bool = False  # it sees all of that as one tensor


def sharding_factors(args: TrainingArguments, gpus: int, width: int = 0) -> ShardingFactors:
    """Returns how the arguments shard a model over a number of GPUs; width: of the language model."""
    asked = sharding.requested_sharding(args)
    if left_out := sharding.not_estimated(args):
        raise InputError(f"{left_out}: no estimate is made")
    if asked is None:
        return ShardingFactors(copied=gpus > 1)
    if asked.startswith("FSDP"):
        return ShardingFactors(gpus, gpus, gpus)
    options = sharding.zero_options(args)

    def setting(name: str, default: float, automatic: int) -> int:
        value = options.get(name, default)
        return automatic if value == "auto" else int(value)

    half = args.bf16 or args.fp16
    zero2 = ShardingFactors(gradients=gpus, optimiser=gpus, half=half, flat=True, master=True)
    bucket = setting("reduce_bucket_size", 5e8, width**2) if options.get("contiguous_gradients", True) else 0
    if asked == "ZeRO-2":
        return replace(zero2, bucket=bucket * (2 if options.get("overlap_comm") else 1))
    gathered = setting("stage3_param_persistence_threshold", 1e5, 10 * width)
    return replace(zero2, weights=gpus, tower=gpus, master=half, bucket=bucket, gathered=gathered)


@dataclass
class Estimate:
    """Bytes on one GPU: by module, of the buffers that gradients are averaged in, and of one batch's activations."""

    weights: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    gradients: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    optimiser: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    buckets: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """Sum of all parts."""
        by_module = (self.weights, self.gradients, self.optimiser)
        return sum(sum(part.values()) for part in by_module) + self.buckets + self.activations


def estimate_memory(model_args: ModelArguments, args: TrainingArguments, shape: Shape, gpus: int) -> Estimate:
    """Estimates the memory of the training that these arguments describe; raises InputError where it cannot."""
    if is_on_base(Path(model_args.model_name_or_path)):
        model: Any = meta_vlm(model_args)
    else:
        model = meta_model(planned_config(model_args), model_args.attn_implementation)
    modules = trainable_modules(model_args, args)
    set_trainable(model, fully_trained(modules, model_args))
    cast_frozen_parameters(model, model_args.frozen_dtype)
    trained = add_adapters(model, model_args, modules) if model_args.lora_r else model
    found = Estimate()
    factors = sharding_factors(args, gpus, model.config.get_text_config().hidden_size)
    count_parameters(found, trained, model_args, args, factors)
    with runnable(model):
        fsdp_config: Any = args.fsdp_config or {}
        checkpointing = getattr(args, CHECKPOINTING) or fsdp_config.get("activation_checkpointing", False)
        found.activations = activation_bytes(model, shape, args.bf16 or args.fp16, checkpointing)
    return found


def count_parameters(
    found: Estimate, model: nn.Module, model_args: ModelArguments, args: TrainingArguments, factors: ShardingFactors
) -> None:
    """Adds weights, buffers, gradients and the optimiser's state of every module to an estimate."""
    per_value, per_tensor = optimiser_bytes(args)
    packed = _quantized(model) if model_args.quantization else set()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        module, values, is_weight = module_of(name), tensor.numel(), isinstance(tensor, nn.Parameter)
        each = tensor.element_size()
        if factors.half and tensor.is_floating_point() and (is_weight or module == "vision_tower"):
            each = 2
        over = factors.tower if module == "vision_tower" else factors.weights
        held = -(-values // (over if is_weight else 1)) + (values if is_weight and values <= factors.gathered else 0)
        found.weights[module] += quantized_bytes(held, str(model_args.quantization)) if name in packed else held * each
        if tensor.requires_grad:
            found.gradients[module] += -(-values // factors.gradients) * each
            state = per_value + (4 if factors.master else 0)
            found.optimiser[module] += -(-values // factors.optimiser) * state + (0 if factors.flat else per_tensor)
    found.buckets = sum(found.gradients.values()) if factors.copied else factors.bucket * (2 if factors.half else 4)


def _quantized(model: nn.Module) -> set[str]:
    """Returns the names of the weights that a quantization packs: the decoder's linear layers, not the output layer."""
    return {
        f"{name}.weight"
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        and "language_model" in name
        and not name.endswith("lm_head")
        and not any(part.startswith("lora_") for part in name.split("."))
    }


def quantized_bytes(values: int, how: str) -> int:
    """Returns the bytes of a weight matrix in 4 bits (half a byte, and a float32 for each block of 64) or 8 bits."""
    if how == "8bit":
        return values
    return -(-values // 2) + 4 * -(-values // NF4_BLOCK) + 16 * 4


def optimiser_bytes(args: TrainingArguments) -> tuple[int, int]:
    """Returns the bytes of the optimiser's state for each value, and beside that for each tensor.

    They are seen in one step of it on a small matrix. Raises InputError for one whose state has other sizes.
    """
    name = OptimizerNames(args.optim).value
    weight = nn.Parameter(torch.zeros(64, 64))
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
        optimiser = kind([weight], **options)
        weight.grad = torch.zeros_like(weight)
        optimiser.step()
    except (ImportError, ValueError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"--optim {name}: cannot be tried here ({str(error).splitlines()[0]})") from None
    per_value = per_tensor = 0
    for value in optimiser.state[weight].values():
        if not isinstance(value, torch.Tensor):
            continue
        if value.numel() == weight.numel():
            per_value += value.element_size()
        elif value.numel() == 1:
            per_tensor += value.element_size()
        else:
            raise InputError(f"--optim {name}: its state grows otherwise than the weights; no estimate is made")
    return per_value, per_tensor


def saved_bytes(run: Callable[[], Any], model: nn.Module) -> int:
    """Returns the bytes that autograd saves in a run, beside the parameters and buffers of the model."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        result = run()
    total = sum(storage.nbytes() for storage in saved.values())
    del result
    return total


def activation_bytes(model: GPT4RoIForConditionalGeneration, shape: Shape, half: bool, checkpointing: bool) -> int:
    """Returns the bytes that autograd saves of one batch; must run in the mode that the model was built in.

    With `half`, matrix products run in 16 bits. With `checkpointing`, the decoder's layers run again in the backward
    pass, so that of each only its input is saved, and of one at a time all the rest.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        around = saved_bytes(lambda: _run(model, shape, decoder=False), model)
        total = saved_bytes(lambda: _run(model, shape, prefix=not checkpointing), model)
    if not checkpointing:
        return total
    text = model.config.get_text_config()
    layers, hidden = text.num_hidden_layers, shape.samples * shape.tokens * text.hidden_size * 4
    return around + layers * hidden + (total - around) // layers


def _run(model: GPT4RoIForConditionalGeneration, shape: Shape, decoder: bool = True, prefix: bool = False) -> Any:
    """Runs a batch of the given shape through the model as a training does, and returns the loss.

    Without `decoder`, its layers are left out; with `prefix`, what precedes the regions may run without a graph.
    """
    if hasattr(model, "region_config"):
        return _run_base(model, shape, decoder)
    config, samples, tokens = model.config, shape.samples, shape.tokens
    weight = next(model.vision_tower.parameters())
    size, image_length = config.image_size, config.image_seq_length
    assert size is not None and image_length is not None, "a built model knows both"
    pixels = torch.zeros(samples, 3, size, size, dtype=weight.dtype)
    image_tokens, maps = model.vision_tower(pixels)
    ids = torch.zeros(samples, tokens, dtype=torch.int64)
    mask = torch.zeros(samples, tokens, dtype=torch.bool)
    embeds = model.get_input_embeddings()(ids)
    embeds = scatter(embeds, mask, model.project_image_tokens(image_tokens).flatten(0, 1))
    embeds = scatter(embeds, mask, _regions(model, maps, shape))
    states = embeds
    if decoder:
        inputs = {"inputs_embeds": embeds, "attention_mask": None, "use_cache": False}
        # At the least the image precedes the first region.
        length = min(image_length + 2, tokens - 1)
        if prefix and only_regions_trained(model):
            states = hidden_states(model.language_model, inputs, length)
        else:
            states = model.language_model.base_model(**inputs).last_hidden_state
    logits = model.get_output_embeddings()(states.flatten(0, 1)[: shape.supervised])
    return F.cross_entropy(logits.float(), torch.zeros(shape.supervised, dtype=torch.int64))


def _regions(model: GPT4RoIForConditionalGeneration, maps: list[torch.Tensor], shape: Shape) -> torch.Tensor:
    """Embeds boxes without reading their values, which tensors without content do not have."""
    encoder: Any = getattr(model.region_encoder, "active_module", model.region_encoder)
    boxes = [torch.zeros(shape.regions, 4) for _ in range(shape.samples)]
    return encoder.embed_boxes(encoder.pyramid(maps), boxes)


def _run_base(model: Any, shape: Shape, decoder: bool) -> torch.Tensor:
    """Does what `_run` does with a pretrained base, whose tower is frozen and saves nothing."""
    encoder, samples, tokens = model.region_encoder, shape.samples, shape.tokens
    encoder = getattr(encoder, "active_module", encoder)
    channels, side = sum(count for count, _ in encoder.level_shapes), encoder.output_size
    boxes = torch.zeros(samples * shape.regions, 4)
    regions = encoder.embed(boxes.new_zeros(len(boxes), channels, side, side)) + encoder.position([boxes])
    ids = torch.zeros(samples, tokens, dtype=torch.int64)
    states = scatter(model.get_input_embeddings()(ids), ids.bool(), regions)
    if decoder:
        states = model.get_decoder()(inputs_embeds=states, use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(states.flatten(0, 1)[: shape.supervised])
    return F.cross_entropy(logits.float(), torch.zeros(shape.supervised, dtype=torch.int64))


def estimate_from_flags(flags: Flags) -> str:
    """Estimates the training of a command line, which needs no --output_dir, and returns the table."""
    given = {name: values for name, values in flags.items() if name != "estimate"}
    arguments = parse_arguments({"output_dir": ("exp",)} | given, planning=True)
    check_choices(arguments, planning=True)
    return format_estimate(arguments.model, arguments.training)


def format_estimate(model_args: ModelArguments, args: TrainingArguments) -> str:
    """Estimates the training that the arguments describe and returns the table."""
    gpus = args.estimate_gpus or max(args.world_size, torch.cuda.device_count(), 1)
    on_base = is_on_base(Path(model_args.model_name_or_path))
    tokens = args.estimate_tokens or model_args.model_max_length or 2048
    # What an image takes of a base's prompt depends on the image: all of it counts as supervised.
    with_image = 0 if on_base else planned_config(model_args).image_seq_length or 0
    if tokens <= with_image + 2:
        raise InputError(f"--estimate_tokens {tokens}: an image alone takes {with_image} tokens; give more")
    samples = args.per_device_train_batch_size
    shape = Shape(samples, tokens, args.estimate_regions, samples * (tokens - with_image))
    return _table(estimate_memory(model_args, args, shape, gpus), shape, gpus)


def _table(found: Estimate, shape: Shape, gpus: int) -> str:
    """Writes an estimate in GiB, one line a module, then activations and the sum."""
    title = f"GiB on each of {gpus} GPU{'s' if gpus > 1 else ''}"
    lines = [f"{title:26}{'weights':>10}{'gradients':>11}{'optimiser':>11}"]
    for name in PARTS:
        parts = (found.weights[name], found.gradients[name], found.optimiser[name])
        lines.append(
            f"{name:26}" + "".join(f"{part / GIB:{width}.2f}" for part, width in zip(parts, (10, 11, 11), strict=True))
        )
    if found.buckets:
        lines.append(f"{'copies to average':26}{'':10}{found.buckets / GIB:11.2f}")
    lines.append(
        f"{'activations':26}{found.activations / GIB:10.2f}  {shape.samples} x {shape.tokens} tokens, "
        f"{shape.regions} regions each"
    )
    lines.append(f"{'sum':26}{found.total / GIB:10.2f}  and 1 to 2 for the GPU's own code and fragments")
    return "\n".join(lines)
