"""Sharding by FSDP and DeepSpeed: its units, its flags, and a check before the first step that it happened.

The Trainer shards by its own flags: `--fsdp` (with `--fsdp_config`) through accelerate, `--deepspeed` through
DeepSpeed. Which modules become units is decided here, and checked before the first step: accelerate silently falls
back to full copies where it cannot shard.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from gpt4roi.errors import InputError
from gpt4roi.io.json_files import parse_json
from gpt4roi.models.modeling import GPT4RoIForConditionalGeneration
from gpt4roi.models.vision_tower import VisionTower
from gpt4roi.train.work_dir import Flags

logger = logging.getLogger(__name__)

CONFIGS = Path(__file__).parents[1] / "configs"
SHIPPED = {"zero2": CONFIGS / "deepspeed_zero2.json", "zero3": CONFIGS / "deepspeed_zero3.json"}
"""What `--deepspeed` may be called instead of a file."""


@dataclass(frozen=True)
class ShardPlan:
    """FSDP units, which are gathered and freed by themselves, and modules that are not sharded.

    Attributes:
        units: Names of modules, inner before outer; everything else but `unsharded` belongs to the root.
        classes: Class names of the units, as accelerate wants them.
    """

    units: tuple[str, ...]
    classes: tuple[str, ...]
    unsharded: tuple[str, ...]


def plan_shards(model: nn.Module) -> ShardPlan:
    """Makes every decoder layer and the region encoder a unit; the tower, small, frozen and run once, is not sharded.

    Raises InputError where the language model does not name its layers.
    """
    base: Any = model
    own = hasattr(model, "language_model")  # a pretrained base has its decoder and its tower further inside
    decoder, tower_module = (base.language_model, None) if own else (base.get_decoder(), base.get_encoder("image"))
    layers = set(getattr(decoder, "_no_split_modules", None) or ())
    names = {name: type(module).__name__ for name, module in model.named_modules()}
    inside = re.compile(r"\.(language|text)_model\.")
    units = [name for name, kind in names.items() if kind in layers and inside.search(f".{name}")]
    if not units:
        raise InputError(f"{type(decoder).__name__} does not name its layers, so it cannot be sharded")
    # Adapters put a prefix before all names.
    units += [next(name for name in names if name.rpartition(".")[2] == "region_encoder")]
    tower = next(
        name
        for name, module in model.named_modules()
        if module is tower_module or (own and name.rpartition(".")[2] == "vision_tower")
    )
    return ShardPlan(tuple(units), tuple(dict.fromkeys(names[name] for name in units)), (tower,))


def local_bytes(module: nn.Module) -> int:
    """Counts the bytes of a module's parameters that this process holds."""
    total = 0
    for parameter in module.parameters():
        held = parameter.to_local() if hasattr(parameter, "to_local") else getattr(parameter, "ds_tensor", parameter)
        total += held.numel() * held.element_size()
    return total


def unsharded_units(model: nn.Module, plan: ShardPlan) -> list[str]:
    """Names the units of a plan whose parameters this process holds unsharded."""
    wrapped = _wrapped_by_fsdp1(model)
    parameters: dict[str, list[nn.Parameter]] = {unit: [] for unit in plan.units}
    for name, parameter in model.named_parameters():
        name = _plain(name)
        for unit in plan.units:
            if name.startswith(unit + "."):
                parameters[unit].append(parameter)
    return [
        unit
        for unit, found in parameters.items()
        if unit not in wrapped and not (found and all(_is_sharded(parameter) for parameter in found))
    ]


def _is_sharded(parameter: Any) -> bool:
    """Tells whether a parameter is one shard of FSDP 2 or ZeRO-3, over more than one process."""
    placements = getattr(parameter, "placements", None)
    if placements is not None:
        return parameter.device_mesh.size() > 1 and any(placement.is_shard() for placement in placements)
    return hasattr(parameter, "ds_id")


def _wrapped_by_fsdp1(model: nn.Module) -> set[str]:
    from torch.distributed.fsdp import FullyShardedDataParallel

    found = {name: module for name, module in model.named_modules() if isinstance(module, FullyShardedDataParallel)}
    return {_plain(name) for name, module in found.items() if module._handle and module._handle.uses_sharded_strategy}


def _plain(name: str) -> str:
    """Returns a parameter's or module's name without what wrappers put into it."""
    wrappers = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")
    return ".".join(part for part in name.removeprefix("module.").split(".") if part not in wrappers)


@contextmanager
def unsharded_while_opening(args: Any) -> Iterator[None]:
    """Opens models unsharded under ZeRO-3, whose own way of opening leaves no weights to measure and extend.

    DeepSpeed shards the weights when it takes them over.
    """
    config = getattr(args, "hf_deepspeed_config", None)
    if config is None:
        yield
        return
    from transformers.integrations import deepspeed

    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(config)


class StopUnlessSharded(TrainerCallback):
    """Stops a training before its first step where sharding was asked for and did not happen."""

    def __init__(self, plan: ShardPlan, trainer: Any) -> None:
        self.plan, self.trainer = plan, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Checks the wrapped model; raises InputError that names what is not sharded."""
        require_sharded(self.trainer.model_wrapped, self.plan, requested_sharding(args))


def require_sharded(model: nn.Module, plan: ShardPlan, asked: str | None) -> None:
    """Raises InputError where `asked` (of `requested_sharding`) did not happen to a wrapped model; logs what did."""
    if asked is None:
        return
    if asked == "ZeRO-2":
        stage = getattr(model, "zero_optimization_stage", lambda: 0)()
        if stage < 2:
            raise InputError(f"{asked} was asked for, but gradients and optimiser are not sharded; {_ADVICE}")
        logger.info("%s: gradients and optimiser are sharded, weights are not", asked)
        return
    left = unsharded_units(model, plan)
    if left:
        shown = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        raise InputError(
            f"{asked} was asked for, but {len(left)} of {len(plan.units)} modules are not sharded ({shown}): every "
            f"process would hold all of them; {_ADVICE}"
        )
    logger.info("%s: %d modules sharded; %.2f GB of weights here", asked, len(plan.units), local_bytes(model) / 1e9)


_ADVICE = "start one process for each GPU with train_stage1.sh, train_stage2.sh or torchrun"


def requested_sharding(args: Any) -> str | None:
    """Returns the sharding that TrainingArguments ask for: FSDP 1, FSDP 2, ZeRO-2, ZeRO-3, or None."""
    if args.fsdp:
        return f"FSDP {int((args.fsdp_config or {}).get('version', 2))}"
    if args.deepspeed:
        stage = _zero_stage(_read_json("--deepspeed", args.deepspeed))
        return f"ZeRO-{stage}" if stage >= 2 else None
    return None


def zero_options(args: Any) -> dict[str, Any]:
    """Returns what DeepSpeed's file says about its sharding."""
    return dict(_read_json("--deepspeed", args.deepspeed).get("zero_optimization") or {})


def not_estimated(args: Any) -> str | None:
    """Names what the arguments ask for whose memory is not estimated: what lies off the GPU, and ZeRO-1."""
    if args.fsdp and (args.fsdp_config or {}).get("cpu_offload"):
        return "--fsdp_config: cpu_offload keeps what is sharded off the GPU"
    if not args.deepspeed:
        return None
    options = zero_options(args)
    for name in ("offload_optimizer", "offload_param", "cpu_offload"):
        value = options.get(name)
        if value and not (isinstance(value, dict) and value.get("device", "cpu") == "none"):
            return f"--deepspeed: {name} keeps some of it off the GPU"
    return "--deepspeed: zero_optimization.stage is 1" if options.get("stage") == 1 else None


def configure(args: Any, model: nn.Module, aligned: bool) -> ShardPlan | None:
    """Prepares a model for sharding, and tells the Trainer's FSDP which modules to shard, unless `--fsdp_config` does.

    Args:
        args: Completed in place.
        model: Before it is wrapped.
        aligned: Whether the alignment loss is used, which reaches into the region encoder past what gathers its shards.

    Returns:
        The plan, None where nothing is sharded.
    """
    if args.deepspeed:
        _prepare_for_deepspeed(model, args.hf_deepspeed_config.dtype())
    asked = requested_sharding(args)
    if asked is None:
        return None
    if aligned and asked != "ZeRO-2":
        raise InputError(f"--align_weight cannot be used while the region encoder is sharded ({asked}); leave it out")
    plan = plan_shards(model)
    if args.fsdp:
        options = args.fsdp_plugin_args
        options.setdefault("transformer_cls_names_to_wrap", ",".join(plan.classes))
        options["ignored_modules"] = "|".join(re.escape(name) for name in plan.unsharded)
        if args.bf16 or args.fp16:
            half = torch.bfloat16 if args.bf16 else torch.float16
            options.setdefault("mixed_precision_policy", _half_weights(half, asked))
    return plan


def _prepare_for_deepspeed(model: nn.Module, dtype: torch.dtype) -> None:
    """Makes every batch call all modules, and casts the tower's statistics, which DeepSpeed forgets."""
    for module in model.modules():
        if isinstance(module, GPT4RoIForConditionalGeneration):
            module.set_uniform_forward(True)
        if isinstance(module, VisionTower) and dtype != torch.float32:
            module.to(dtype)


def _half_weights(dtype: torch.dtype, asked: str) -> Any:
    """Lets FSDP gather weights and reduce gradients in 16 bits, as accelerate does, but cast no inputs nor outputs.

    It would round the boxes, and the loss. Our modules cast what they are given to their weights, the decoder begins
    with an embedding in 16 bits and the loss is taken in float32, so that nothing needs the casts.
    """
    if asked == "FSDP 1":
        from torch.distributed.fsdp import MixedPrecision

        return MixedPrecision(dtype, dtype, cast_forward_inputs=False, cast_root_forward_inputs=False)
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return MixedPrecisionPolicy(dtype, dtype, cast_forward_inputs=False)


def check_flags(flags: Flags, accelerated: bool, needed: bool = True) -> None:
    """Raises InputError for flags of sharding that cannot be carried out; needed: packages must be installed."""
    fsdp = "fsdp" in flags and flags["fsdp"] not in (("",), ("false",), ("False",))
    deepspeed = flags.get("deepspeed", ())
    if "deepspeed" in flags and not deepspeed:
        raise InputError("--deepspeed: give zero2, zero3, or a JSON file of DeepSpeed's settings")
    if fsdp and deepspeed:
        raise InputError("--fsdp and --deepspeed both shard; give one of them")
    if flags.get("fsdp_config"):
        if not fsdp:
            raise InputError("--fsdp_config does nothing without --fsdp")
        version = _read_json("--fsdp_config", flags["fsdp_config"][0]).get("version", 2)
        if version not in (1, 2, "1", "2"):
            raise InputError(f"--fsdp_config: version must be 1 or 2, got {version!r}")
    if fsdp and not accelerated:
        raise InputError(
            "--fsdp needs GPUs: on the CPU the Trainer would silently train full copies; leave it out, or use "
            "--deepspeed zero2 or zero3"
        )
    if deepspeed:
        _zero_stage(_read_json("--deepspeed", deepspeed[0]))
        if needed and find_spec("deepspeed") is None:
            raise InputError("--deepspeed needs the package deepspeed: pip install 'gpt4roi[deepspeed]'")


def _read_json(flag: str, value: str | dict[str, Any]) -> dict[str, Any]:
    """Reads a flag's JSON object: a file's, a shipped one's by name, or the text itself."""
    if isinstance(value, dict):
        return value
    data, where = value.encode(), flag
    if not value.lstrip().startswith("{"):
        path = SHIPPED.get(value, Path(value)) if flag == "--deepspeed" else Path(value)
        if not path.is_file():
            names = f"; shipped are {' and '.join(SHIPPED)}" if flag == "--deepspeed" else ""
            raise InputError(f"{flag}: {value}: no such file{names}")
        data, where = path.read_bytes(), f"{flag}: {value}"
    content = parse_json(data, where)
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(content).__name__}")
    return content


def _zero_stage(config: dict[str, Any]) -> int:
    stage = (config.get("zero_optimization") or {}).get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise InputError(f"--deepspeed: zero_optimization.stage must be 0 to 3, got {stage!r}")
    return stage
