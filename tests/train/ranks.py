"""What two processes do together, printed as JSON: `python tests/train/ranks.py SCENARIO… FOLDER`.

One parent imports everything once and forks the processes, so that a run costs no imports.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from squares import write_parts  # noqa: E402
from tiny import tiny_model, tiny_processor  # noqa: E402

from gpt4roi import distributed  # noqa: E402
from gpt4roi.checkpoint.loading import load_model  # noqa: E402
from gpt4roi.data.training_dataset import EncodedDataset  # noqa: E402
from gpt4roi.errors import InputError  # noqa: E402
from gpt4roi.models.light_encoder import LightRegionEncoder  # noqa: E402
from gpt4roi.models.vision_tower import VisionTower  # noqa: E402
from gpt4roi.train import alignment, feature_cache, main, saving, sharding, trainer, training  # noqa: E402
from gpt4roi.train.command_line import parse  # noqa: E402
from gpt4roi.train.estimate import Shape, estimate_memory  # noqa: E402
from gpt4roi.train.param_groups import set_trainable  # noqa: E402

PATIENCE = timedelta(minutes=10)
"""How long processes wait for each other where nothing else is asked; the machine may be busy."""


def together(count: int, folder: Path, work: Callable[[Path], dict]) -> list[dict]:
    """Forks `count` processes as torchrun would start them, and returns what `work` returned in each."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as kept:  # until the end, so that nobody else is given the port before they meet there
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        children = []
        for rank in range(count):
            process = os.fork()
            if process == 0:
                _child(rank, count, kept.getsockname()[1], folder, work)
            children.append(process)
        failed = [rank for rank, process in enumerate(children) if os.waitpid(process, 0)[1]]
    if failed:
        raise SystemExit("\n".join((folder / f"rank{rank}.log").read_text()[-3000:] for rank in failed))
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(count)]


def _child(rank: int, count: int, port: int, folder: Path, work: Callable[[Path], dict]) -> None:
    log = os.open(folder / f"rank{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if count > 1:
        ids = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in ids.items()}, MASTER_ADDR="127.0.0.1")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    code = 1
    try:
        (folder / f"rank{rank}.json").write_text(json.dumps(work(folder)))
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


STEPS = 6


def train(folder: Path, parts: Path, *more: str, stop_at: int | None = None) -> dict[str, Any]:
    """Trains in a work directory; returns the samples that this process read, and the losses of its lives so far."""
    read = []
    get, step = EncodedDataset.__getitem__, training.GPT4RoITrainer.training_step

    def get_and_tell(self: EncodedDataset, index: int) -> dict:
        read.append([self.epoch, index])
        return get(self, index)

    def step_or_stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == stop_at:
            raise InterruptedError
        return step(self, *args, **kwargs)

    EncodedDataset.__getitem__, training.GPT4RoITrainer.training_step = get_and_tell, step_or_stop
    work = folder / "work"
    argv = ["--stage", "1", "--output_dir", str(work)]
    if not (work / "run.json").exists():
        argv += arguments(parts)
    try:
        main([*argv, *more])
    except InterruptedError:
        return {"read": read}
    newest = saving.last_checkpoint(work)
    history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return {"read": read, "losses": [entry["loss"] for entry in history if "loss" in entry]}


def arguments(parts: Path) -> list[str]:
    return [
        *("--model_name_or_path", f"{parts}/language_model", "--vision_tower", f"{parts}/pyramid"),
        *("--region_encoder_type", "light", "--region_noise", "0.5", "--prompt_format", "chat"),
        *("--dataset_config", f"{parts}/train.jsonl", "--max_steps", str(STEPS), "--save_steps", "2"),
        *("--save_total_limit", "9", "--global_batch_size", "4", "--per_device_train_batch_size", "1"),
        *("--learning_rate", "3e-3", "--report_to", "none", "--disable_tqdm", "true", "--ddp_backend", "gloo"),
        *("--attn_implementation", "eager", "--max_grad_norm", "1.0"),
    ]


def without_regions(path: Path, boxless: tuple[int, ...], text: tuple[int, ...]) -> None:
    """Takes the boxes from some samples of a file, and from others the image too."""
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    question = [{"from": "human", "value": "What is this?"}, {"from": "gpt", "value": "squares"}]
    for index in (*boxless, *text):
        samples[index] |= {"boxes": [], "conversations": question, "tasks": ["caption"]}
    for index in text:
        del samples[index]["image"]
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))


def ddp(root: Path, parts: Path) -> dict:
    """Two processes, uninterrupted and interrupted; their checkpoint of step 2 gone on with by one."""
    whole = together(2, root / "whole", lambda folder: train(folder, parts))
    together(2, root / "again", lambda folder: train(folder, parts, stop_at=5))
    again = together(2, root / "again", lambda folder: train(folder, parts))
    alone = together(1, root / "alone", lambda folder: train(folder, parts))
    work = root / "whole" / "work"
    for step in (4, 6):
        saving.remove(work / f"checkpoint-{step}")
    (work / "trained.json").unlink()
    fewer = together(1, root / "whole", lambda folder: train(folder, parts))
    return {"whole": whole, "again": again, "alone": alone, "fewer": fewer}


def losing(root: Path, parts: Path) -> dict:
    """Two processes, and one, on samples of which half have no image: what they count, and where they stop."""
    rows = [json.loads(line) for line in (parts / "train.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["image"] = f"{parts}/{row['image']}" if number % 2 else f"missing{number}.png"
    some = parts / "some.jsonl"
    some.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = ("--dataset_config", str(some), "--max_steps", "2", "--max_bad_fraction", "1")
    skipped = []
    for count in (1, 2):
        together(count, root / f"{count}", lambda folder: train(folder, parts, *told))
        state = json.loads((root / f"{count}/work/checkpoint-2/trainer_state.json").read_text())
        skipped.append([line.get("skipped") for line in state["log_history"]])
    stopped = together(2, root / "stopped", lambda folder: stopped_by(folder, parts, some))
    return {"skipped": skipped, "stopped": stopped}


def base(root: Path, parts: Path) -> dict:
    """A pretrained vision-language model in two processes, of which one may hold text alone, and in one process."""
    from vlm.tiny_vlms import tiny_vlm

    vlm, data = tiny_vlm("qwen2_5_vl"), parts / "base.jsonl"
    vlm.base.save_pretrained(root / "base")
    vlm.processor.base.save_pretrained(root / "base")
    shutil.copy(parts / "train.jsonl", data)
    without_regions(data, (), (1, 3, 5, 7, 9))
    given = ("--model_name_or_path", str(root / "base"), "--dataset_config", str(data), "--region_noise", "0")
    given += ("--global_batch_size", "2", "--max_steps", "4", "--save_steps", "4", "--logging_steps", "1")
    return {
        "two": together(2, root / "two", lambda folder: train(folder, parts, *given)),
        "alone": together(1, root / "alone", lambda folder: train(folder, parts, *given)),
    }


def stopped_by(folder: Path, parts: Path, data: Path) -> str:
    """Trains until too many samples are lost, of eight; returns what is said."""
    trainer.ENOUGH_SEEN = 8
    try:
        train(folder, parts, "--dataset_config", str(data))
    except InputError as error:
        return str(error)
    return ""


def first(root: Path, parts: Path) -> dict:
    """What the first process does alone while the other waits, longer than a collective would; and its alignment."""
    (root / "kept").mkdir(parents=True)
    return {
        "waited": together(2, root / "waited", wait_for_the_first),
        "aligned": together(2, root / "aligned", lambda folder: align(folder, parts, root / "kept")),
        "alone": together(1, root / "alone", lambda folder: align(folder, parts, root / "kept")),
    }


def wait_for_the_first(folder: Path) -> dict:
    dist.init_process_group("gloo", timeout=PATIENCE)
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=5))
    with distributed.main_process_first("a long work") as alone:
        began = time.monotonic()
        time.sleep(7 if alone else 0)
        waited = (folder / "done").exists()
        (folder / "done").touch()
    dist.distributed_c10d._set_pg_timeout(PATIENCE)
    dist.barrier()  # the first process takes the place where they met along when it ends
    try:
        with distributed.main_process_first("a work that fails") as alone:
            if alone:
                raise InputError("it cannot be done")
    except InputError as error:
        return {"waited": waited, "seconds": time.monotonic() - began, "error": str(error)}
    return {}


def align(folder: Path, parts: Path, kept: Path) -> dict:
    """Aligns and trains a step; returns what this process did for it, and a digest of what it came to."""
    facts = {"looked": 0, "aligned": 0}
    look, align_regions, set_up = feature_cache._encode_images, alignment.align_regions, training.set_trainable

    def look_and_tell(*args: Any) -> Any:
        facts["looked"] += 1
        return look(*args)

    def align_and_tell(*args: Any) -> Any:
        facts["aligned"] += 1
        return align_regions(*args)

    def digest_and_set_up(model: Any, *args: Any) -> Any:
        values = [*model.region_encoder.state_dict().values(), torch.get_rng_state()]
        facts["digest"] = hashlib.sha256(b"".join(value.numpy().tobytes() for value in values)).hexdigest()
        return set_up(model, *args)

    feature_cache._encode_images, alignment.align_regions, training.set_trainable = (
        look_and_tell,
        align_and_tell,
        digest_and_set_up,
    )
    more = ("--align_regions", "2", "--feature_cache", str(kept), "--max_steps", "1")
    return facts | train(folder, parts, *more)


def batch_of(parts: Path, processor: Any) -> list[dict]:
    """Encodes the first four samples as two batches of two, of which the second holds no region."""
    from gpt4roi.data.registry import build_mixture
    from gpt4roi.processing.batch import RegionCollator

    dataset = EncodedDataset(build_mixture(parts / "train.jsonl"), processor, 0)
    collate = RegionCollator(processor.tokenizer.pad_token_id)
    halves = [collate([dataset[index] for index in pair]) for pair in ((0, 1), (2, 3))]
    for half in halves:
        for name in ("n_dropped_rounds", "n_tokens", "n_supervised"):
            half.pop(name)
    return halves


def learn(model: torch.nn.Module, optimizer: Any, batches: list[dict], steps: int, ranks: int) -> list[float]:
    """Takes steps on batches, one a process, or all in one; returns the loss over all processes of each."""
    items = sum(int((batch["labels"][:, 1:] >= 0).sum()) for batch in batches)
    mine = batches if ranks == 1 else [batches[dist.get_rank()]]
    losses = []
    for _ in range(steps):
        total = torch.zeros(())
        for batch in mine:
            loss = model(**batch, logits_at_targets_only=True, num_items_in_batch=items).loss
            (loss * ranks).backward()
            total += loss.detach()
        if ranks > 1:
            dist.all_reduce(total)
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(total))
    return losses


MODULES = ("region_encoder", "mm_projector", "language_model")


def fresh(modules: tuple[str, ...] = MODULES) -> torch.nn.Module:
    model = tiny_model("pyramid").train()
    set_trainable(model, modules)
    return model


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


def shards(root: Path, parts: Path) -> dict:
    """Everything about sharding that needs no GPU, in two processes of gloo, beside one process."""
    model = fresh()
    processor = tiny_processor(model.config)
    batches = batch_of(parts, processor)
    optimizer = optimizer_of(model)
    alone = learn(model, optimizer, batches, 4, ranks=1)
    found = together(2, root, lambda folder: shard_and_learn(folder, processor, batches))
    opened = load_model(root / "full")
    differ = [float((opened.state_dict()[name] - tensor).abs().max()) for name, tensor in model.state_dict().items()]
    return {"alone": alone, "two": found, "largest_difference": max(differ)}


def shard_and_learn(folder: Path, processor: Any, batches: list[dict]) -> dict:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    dist.init_process_group("gloo", timeout=PATIENCE)
    model = fresh()
    plan = sharding.plan_shards(model)
    facts = {"units": plan.units, "bytes_whole": sharding.local_bytes(model), "unsharded": []}
    facts["unsharded_before"] = sharding.unsharded_units(model, plan)
    facts["refusal"] = refusal(model, plan)
    shard_by_accelerate(model)
    sharding.require_sharded(model, plan, "FSDP 2")
    facts["bytes_here"] = sharding.local_bytes(model)
    facts["bytes_tower"] = sharding.local_bytes(model.vision_tower)
    facts["bytes_tower_whole"] = sharding.local_bytes(fresh().vision_tower)
    optimizer = optimizer_of(model)
    facts["losses"] = learn(model, optimizer, batches, 2, ranks=2)
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder / "sharded")
    facts["losses"] += learn(model, optimizer, batches, 2, ranks=2)
    full = full_state_dict(model)
    facts["full_tensors"] = len(full)
    if dist.get_rank() == 0:
        fresh().save_pretrained(folder / "full", state_dict=full)
        processor.save_pretrained(folder / "full")

    resumed = shard_by_accelerate(fresh())
    again = optimizer_of(resumed)
    weights, moments = get_state_dict(resumed, again)
    dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=folder / "sharded")
    set_state_dict(resumed, again, model_state_dict=weights, optim_state_dict=moments)
    facts["losses_resumed"] = learn(resumed, again, batches, 2, ranks=2)

    facts["evaluated"] = evaluate_beside_text(shard_by_accelerate(fresh()), processor, batches)
    frozen = shard_by_accelerate(fresh(("region_encoder",)))
    facts["losses_frozen"] = learn(frozen, optimizer_of(frozen), batches, 2, ranks=2)
    facts["accelerate"] = by_accelerate()
    facts["fsdp1"] = by_fsdp1(batches)
    kinds = [(kind, version) for kind in ("clip", "pyramid") for version in (1, 2)]
    facts["half"] = {f"{kind} {version}": in_half_precision(kind, version) for kind, version in kinds}
    dist.destroy_process_group()
    return facts


def full_state_dict(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gathers the weights of a sharded model on the first process, as accelerate does for the trained model."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def text_batch(processor: Any) -> dict:
    ids = processor.tokenizer("is it left of it yes", return_tensors="pt")["input_ids"]
    return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def evaluate_beside_text(model: torch.nn.Module, processor: Any, batches: list[dict]) -> dict:
    """Returns the losses of two batches, of which the first holds text alone in the second process."""
    model.eval()
    whole = fresh().eval()
    rank, found = dist.get_rank(), {"sharded": [], "whole": []}
    for batch in (batches[0] if rank == 0 else text_batch(processor), batches[1]):
        found["sharded"].append(float(model(**batch, logits_at_targets_only=True).loss))
        found["whole"].append(float(whole(**batch, logits_at_targets_only=True).loss))
    return found


def refusal(model: torch.nn.Module, plan: sharding.ShardPlan) -> str:
    try:
        sharding.require_sharded(model, plan, "FSDP 2")
    except ValueError as error:
        return str(error)
    return ""


def plugin_of(version: int, model: torch.nn.Module, bf16: bool = False) -> Any:
    """Builds accelerate's plugin from the Trainer's arguments, as `configure` completes them."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from transformers import TrainingArguments

    # What broadcasts the weights at the start looks for a GPU.
    config = {"version": version} | ({"sync_module_states": "false"} if version == 1 else {})
    args = TrainingArguments(
        output_dir="unused", use_cpu=True, fsdp=True, fsdp_config=config, report_to="none", bf16=bf16
    )
    sharding.configure(args, model, aligned=False)
    plugin = FullyShardedDataParallelPlugin(**args.fsdp_plugin_args)
    if bf16:
        plugin.set_mixed_precision("bf16")  # as the Accelerator does
    return plugin


def shard_by_accelerate(model: torch.nn.Module, bf16: bool = False) -> torch.nn.Module:
    """Lets accelerate's own function shard as our flags say, which its Accelerator does on GPUs only."""
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin_of(2, model, bf16)),
        device=torch.device("cpu"),
        mixed_precision="bf16" if bf16 else "no",
        is_main_process=dist.get_rank() == 0,
        parallelism_config=None,
    )
    return fsdp2_prepare_model(accelerator, model)


def by_accelerate() -> dict:
    model = fresh()
    plan = sharding.plan_shards(model)
    model = shard_by_accelerate(model)
    return {
        "unsharded": sharding.unsharded_units(model, plan),
        "bytes_here": sharding.local_bytes(model),
        "bytes_tower": sharding.local_bytes(model.vision_tower),
    }


def wrap_by_fsdp1(model: torch.nn.Module, bf16: bool = False) -> torch.nn.Module:
    """Wraps with FSDP 1 as the plugin for it says, and as accelerate does, autocast included."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    plugin = plugin_of(1, model, bf16)
    plugin.set_auto_wrap_policy(model)
    if bf16:
        model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=plugin.auto_wrap_policy,
        ignored_modules=[model.vision_tower],
        mixed_precision=plugin.mixed_precision_policy,
        use_orig_params=plugin.use_orig_params,
        device_id=torch.device("cpu"),
    )


def by_fsdp1(batches: list[dict]) -> dict:
    model = fresh()
    plan = sharding.plan_shards(model)
    wrapped = wrap_by_fsdp1(model)
    unsharded = sharding.unsharded_units(wrapped, plan)
    return {"unsharded": unsharded, "losses": learn(wrapped, optimizer_of(wrapped), batches, 2, ranks=2)}


def regions_of(model: torch.nn.Module) -> dict:
    """Makes a batch of one image with one box for a model of any kind, another one in each process."""
    generator, config = torch.Generator().manual_seed(dist.get_rank()), model.config
    image = [config.image_start_token_id, *[config.image_token_id] * config.image_seq_length]
    ids = torch.tensor([[1, *image, config.image_end_token_id, config.region_token_id, 7, 8, 9]])
    return {
        "input_ids": ids,
        "labels": ids.where(torch.arange(ids.shape[1]) > ids.shape[1] - 4, -100),
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 3, config.image_size, config.image_size, generator=generator),
        "boxes": [torch.rand(1, 4, generator=generator) * 0.4 + torch.tensor([0.0, 0.0, 0.5, 0.5])],
    }


def in_half_precision(kind: str, version: int) -> dict:
    """Takes steps in bfloat16 under FSDP; returns what came to the region encoder and the dtypes around it."""
    model = tiny_model(kind).train()
    set_trainable(model, MODULES)
    batch, encoder, seen = regions_of(model), model.region_encoder, {}

    def look(module: torch.nn.Module, arguments: tuple, kwargs: dict) -> None:
        boxes = [*arguments, *kwargs.values()][1]
        seen.update(boxes=boxes[0].tolist(), weights=str(next(module.parameters()).dtype))
        seen["buffers"] = sorted({str(buffer.dtype) for buffer in module.buffers()})

    wrapped = shard_by_accelerate(model, bf16=True) if version == 2 else wrap_by_fsdp1(model, bf16=True)
    encoder.register_forward_pre_hook(look, with_kwargs=True)  # after FSDP's own
    optimizer, losses = optimizer_of(wrapped), []
    for _ in range(4):
        loss = wrapped(**batch, logits_at_targets_only=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return {**seen, "given": batch["boxes"][0].tolist(), "loss": str(loss.dtype), "losses": losses}


def deepspeed(root: Path, parts: Path) -> dict:
    """ZeRO-2 and ZeRO-3 through the Trainer: uninterrupted, and interrupted after step 4."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    quiet = ("--region_noise", "0")  # a box that is no one's draws numbers too
    found = {"ddp": together(2, root / "ddp", lambda folder: train(folder, parts, *quiet))}
    for stage, config in (("zero2", "zero2"), ("zero3", str(gathering(root)))):
        more = ("--deepspeed", config, *quiet)
        found[stage] = together(2, root / stage, lambda folder, more=more: train(folder, parts, *more))
        together(2, root / f"{stage}-again", lambda folder, more=more: train(folder, parts, *more, stop_at=5))
        found[f"{stage}_again"] = together(2, root / f"{stage}-again", lambda folder: train(folder, parts))
        found[f"{stage}_log"] = (root / stage / "rank0.log").read_text()
        half = (*more, "--bf16", "true")
        found[f"{stage}_half"] = together(
            2, root / f"{stage}-half", lambda folder, more=half: seen(folder, parts, *more)
        )
        estimates = together(1, root / f"{stage}-estimated", lambda _, more=half: estimated_for(parts, *more))
        found[f"{stage}_estimated"] = estimates[0]
    return found


def seen(folder: Path, parts: Path, *more: str) -> dict[str, Any]:
    """Trains; returns also the dtypes of the boxes, of the region encoder, and of what the tower works with."""
    found, forward, tower = {}, LightRegionEncoder.forward, VisionTower.forward

    def encode(self: Any, maps: list, boxes: list) -> torch.Tensor:
        found["boxes"] = sorted({*found.get("boxes", ()), *(str(rows.dtype) for rows in boxes)})
        found["weights"] = str(next(self.parameters()).dtype)
        return forward(self, maps, boxes)

    def look(self: Any, pixel_values: torch.Tensor) -> Any:
        tensors = (*self.parameters(), *self.buffers(), pixel_values)
        found["tower"] = sorted({str(tensor.dtype) for tensor in tensors if tensor.is_floating_point()})
        return tower(self, pixel_values)

    LightRegionEncoder.forward, VisionTower.forward = encode, look
    take = training.GPT4RoITrainer.training_step

    def take_and_measure(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "held" not in found:
            measure(self.model_wrapped, found.setdefault("held", {}))
        return take(self, *args, **kwargs)

    training.GPT4RoITrainer.training_step = take_and_measure
    return train(folder, parts, *more) | found


def measure(engine: Any, held: dict[str, int]) -> None:
    """Lets DeepSpeed's engine say, in each of its steps, how many bytes it holds here of what an estimate counts."""
    optimiser, model = engine.optimizer, engine.module
    step = optimiser.step

    def step_and_count(*args: Any, **kwargs: Any) -> Any:
        if hasattr(optimiser, "averaged_gradients"):
            gradients = [value for values in optimiser.averaged_gradients.values() for value in values]
        else:
            gradients = [optimiser.grad_partitions_flat_buffer]
        held["gradients"] = sum(value.nbytes for value in gradients)
        result = step(*args, **kwargs)
        whole = [*model.parameters(), *model.buffers()]
        shares = [parameter.ds_tensor for parameter in model.parameters() if hasattr(parameter, "ds_tensor")]
        held["weights"] = sum(value.nbytes for value in (*whole, *shares))
        name = "single_partition_of_fp32_groups" if not shares else "fp32_partitioned_groups_flat"
        state = [value for values in optimiser.optimizer.state.values() for value in values.values()]
        kept = (*getattr(optimiser, name), *(value for value in state if isinstance(value, torch.Tensor)))
        held["optimiser"] = sum(value.nbytes for value in kept)
        return result

    optimiser.step = step_and_count


def estimated_for(parts: Path, *more: str) -> dict[str, int]:
    """Returns what `--estimate` says of the training in two processes."""
    argv = ["--stage", "1", "--output_dir", "unused", *arguments(parts), *more]
    model_args, _, _, args = parse(argv, planning=True)
    found = estimate_memory(model_args, args, Shape(1, 60, 1, 10), gpus=2)
    return {part: sum(getattr(found, part).values()) for part in ("weights", "gradients", "optimiser")}


def gathering(root: Path) -> Path:
    """Writes ZeRO-3's file with an exception for small weights that not all of a tiny model's are."""
    config = json.loads(sharding.SHIPPED["zero3"].read_text())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 500
    (root / "zero3.json").write_text(json.dumps(config))
    return root / "zero3.json"


def run(argv: list[str]) -> None:
    """Prints what the named scenarios found, as one JSON object by name."""
    *names, folder = argv
    torch.set_num_threads(1)
    root = Path(folder)
    parts, mixed = root / "parts", root / "mixed"
    for place in (parts, mixed):
        place.mkdir(parents=True)
        write_parts(place, images=11)
    without_regions(mixed / "train.jsonl", boxless=(2, 6), text=(3, 8))
    on_regions = {"losing": losing, "first": first, "base": base}
    scenarios = on_regions | {"ddp": ddp, "shards": shards, "deepspeed": deepspeed}
    found = {name: scenarios[name](root / name, parts if name in on_regions else mixed) for name in names}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    run(sys.argv[1:])
