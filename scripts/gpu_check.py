"""The checks of gpu_check.sh: each runs in a process of its own under a time limit, and gives figures or a reason.

A check is a function of `Place` with a limit in seconds: it returns figures by name, raises SkippedCheckError with the
reason, or fails. Checks whose figures come from a benchmark or a test suite start it as anybody would.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ORIGINAL = ROOT / "tests" / "golden" / "original_format_folder"

Figures = dict[str, Any]


class SkippedCheckError(Exception):
    """A check that this machine cannot run; the text says why."""


@dataclass(frozen=True)
class Place:
    """Where the checks run.

    Attributes:
        device: `cuda`, or `cpu` for a dry run.
        dry: Tiny sizes.
        folder: For what a check writes.
    """

    device: str
    dry: bool
    folder: Path

    def need_gpu(self, why: str) -> None:
        """Raises SkippedCheckError on a CPU."""
        if self.device == "cpu":
            raise SkippedCheckError(f"needs a GPU: {why}")


def need(package: str) -> None:
    """Raises SkippedCheckError where a package is missing."""
    if find_spec(package) is None:
        raise SkippedCheckError(f"{package} is not installed")


def attention(place: Place) -> Figures:
    """Eager attention against sdpa, and flash attention where it is installed: largest difference of the logits."""
    import torch
    from tiny import tiny_model

    dtype = torch.float32 if place.device == "cpu" else torch.bfloat16
    model = tiny_model("clip").to(place.device, dtype).eval()
    inputs = example(model, place.device)
    kinds = ["sdpa", *(["flash_attention_2"] if place.device == "cuda" and find_spec("flash_attn") else [])]
    found: Figures = {}
    model.set_attn_implementation("eager")
    eager = logits(model, inputs)
    for kind in kinds:
        model.set_attn_implementation(kind)
        found[f"{kind} differs by"] = largest = ((logits(model, inputs) - eager).abs().max() / eager.abs().max()).item()
        expect(largest < (1e-4 if dtype == torch.float32 else 5e-2), f"{kind} differs from eager by {largest:.1e}")
    return found | ({} if len(kinds) > 1 else {"flash attention": "not installed, or no GPU"})


def bfloat16(place: Place) -> Figures:
    """The recorded original in bfloat16 on the device against float32 on the CPU."""
    import torch

    from gpt4roi.checkpoint.loading import load_model

    reference = load_model(ORIGINAL).eval()
    inputs = example(reference, "cpu")
    wanted = logits(reference, inputs)
    model = load_model(ORIGINAL).to(place.device, torch.bfloat16).eval()
    given = logits(model, {name: moved(value, place.device) for name, value in inputs.items()})
    off = ((given - wanted).abs().max() / wanted.abs().max()).item()
    expect(off < 0.1, f"logits in bfloat16 differ by {off:.1e} of the largest")
    return {"logits differ by": off, "same next token": (given.argmax(-1) == wanted.argmax(-1)).float().mean().item()}


def roi_align(place: Place) -> Figures:
    """The sparse RoIAlign against torchvision's on the device, and its gradient by finite differences."""
    import torch
    from torchvision.ops import roi_align as plain

    from gpt4roi.models.kernels.sparse_roi_align import sparse_roi_align

    draw = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 9, 9, generator=draw, dtype=torch.float64).to(place.device)
    rois = torch.tensor([[0, 3.0, 5.0, 40.0, 60.0], [1, 10.0, 2.0, 70.0, 33.0]], dtype=torch.float64).to(place.device)
    options = {"output_size": 3, "spatial_scale": 1 / 8, "sampling_ratio": 2}
    expected = plain(maps, rois, aligned=True, **options)
    off = (sparse_roi_align(maps, rois, **options) - expected).abs().max().item()
    expect(off < 1e-12, f"RoIAlign differs by {off:.1e}")
    right = torch.autograd.gradcheck(lambda x: sparse_roi_align(x, rois, **options), maps.requires_grad_())
    return {"differs by": off, "gradcheck": bool(right)}


def island(place: Place) -> Figures:
    """The tests of mmcv's RoIAlign; on a GPU its CUDA kernels too, and their gradients."""
    tests = ["tests/test_interface.py"] if place.dry else []
    return pytest_counts(["-q", *tests], ROOT / "mmcv-1.4.7")


def gpu_tests(place: Place) -> Figures:
    """The tests marked `gpu`; a dry run collects them."""
    dry = ["--collect-only", "tests/checkpoint/test_ordinary_citizen.py"] if place.dry else ["tests"]
    return pytest_counts(["-q", "-m", "gpu", "-p", "no:cacheprovider", *dry], ROOT)


def training(place: Place) -> Figures:
    """Both stages through the training's command line, then ZeRO where DeepSpeed is installed: losses."""
    from squares import write_parts

    parts = write_parts(place.folder / "parts")
    data = ["--dataset_config", f"{parts}/train.jsonl", "--prompt_format", "chat", "--report_to", "none"]
    start = ["--model_name_or_path", f"{parts}/language_model", "--vision_tower", f"{parts}/pyramid"]
    more = ["--region_encoder_type", "light", "--max_steps", "2", "--disable_tqdm", "true"]
    cpu = ["--use_cpu", "true"] if place.device == "cpu" else []
    first, second = place.folder / "stage1", place.folder / "stage2"
    run_module("gpt4roi.train", "--stage", "1", "--output_dir", first, *start, *data, *more, *cpu)
    run_module(
        "gpt4roi.train", "--stage", "2", "--output_dir", second, "--model_name_or_path", first, *data, *more, *cpu
    )
    found: Figures = {"stage 1 loss": last_loss(first), "stage 2 loss": last_loss(second)}
    if place.device == "cuda" and find_spec("deepspeed"):
        other = place.folder / "zero"
        flags = ["--model_name_or_path", first, *data, *more, "--deepspeed", "zero2"]
        run_module("gpt4roi.train", "--stage", "2", "--output_dir", other, *flags)
        found["stage 2 loss, ZeRO-2"] = last_loss(other)
    return found


def fsdp(place: Place) -> Figures:
    """FSDP 2 through the Trainer, two processes, each on a GPU of its own."""
    import torch

    place.need_gpu("accelerate runs DDP on a CPU")
    if torch.cuda.device_count() < 2:
        raise SkippedCheckError("needs two GPUs: --fsdp shards over processes, and the training refuses it for one")
    from squares import write_parts

    parts = write_parts(place.folder / "parts")
    flags = ["--model_name_or_path", f"{parts}/language_model", "--vision_tower", f"{parts}/pyramid", "--fsdp"]
    flags += ["full_shard", "--region_encoder_type", "light", "--max_steps", "2", "--report_to", "none"]
    flags += ["--dataset_config", f"{parts}/train.jsonl", "--prompt_format", "chat"]
    command = ["--standalone", "--nproc_per_node", "2", "-m", "gpt4roi.train", "--stage", "2"]
    run_module("torch.distributed.run", *command, "--output_dir", place.folder / "fsdp", *flags)
    return {"loss": last_loss(place.folder / "fsdp")}


def four_bit(place: Place) -> Figures:
    """A model with 4-bit weights answers on the GPU."""
    place.need_gpu("4-bit on a CPU is in the suite")
    need("bitsandbytes")
    return pytest_counts(["-q", "-m", "gpu", "-k", "quantized", "tests/checkpoint/test_ordinary_citizen.py"], ROOT)


def compiled(place: Place) -> Figures:
    """torch.compile gives the same answers."""
    place.need_gpu("on a CPU the suite's slow test does this in a minute")
    selected = ["-k", "compiled_model_gives", "tests/test_devices.py", "--override-ini", "addopts="]
    return pytest_counts(["-q", *selected], ROOT)


def benchmark(name: str, *arguments: str) -> Callable[[Place], Figures]:
    """Makes the check that runs a benchmark: ratios by case; the GPU's rows where there is one."""

    def check(place: Place) -> Figures:
        answer = place.folder / "rows.json"
        flags = ["--quick"] if place.dry else ["--quick", *arguments]
        run([sys.executable, ROOT / "benchmarks" / f"{name}.py", *flags, "--json", answer])
        rows = json.loads(answer.read_text(encoding="utf-8"))["rows"]
        wanted = [row for row in rows if row["device"] == place.device] or rows
        median = {id(row): (sorted(row["theirs"]), sorted(row["own"])) for row in wanted}
        return {
            f"{row['case']}: {row['ours']} against {row['alternative']} [{row['device']}]": round(
                theirs[len(theirs) // 2] / own[len(own) // 2], 2
            )
            for row in wanted
            for theirs, own in [median[id(row)]]
        }

    check.__doc__ = f"benchmarks/{name}.py: ratios against the named alternative."
    return check


def real_size(place: Place) -> Figures:
    """A 7B model of random weights: delta made and applied, opened in bfloat16, asked; on a GPU its peak memory too."""
    from scripts.rehearse_real_size import main

    like = ["--like", str(ORIGINAL)] if place.dry else []
    if not place.dry:
        import shutil

        free = shutil.disk_usage(place.folder).free / 1e9
        if free < 45:
            raise SkippedCheckError(f"needs 45 GB of disk, {free:.0f} are free in {place.folder}")
    main([str(place.folder / "real"), "--device", place.device, *like])
    rows = json.loads((place.folder / "real" / "rehearsal.json").read_text())
    return {f"{step}, {key}": value for step, row in rows.items() for key, value in row.items()}


def memory(place: Place) -> Figures:
    """What a forward pass of stage 1 keeps for the backward one, at 7B's widths, against what --estimate says."""
    import torch
    from tiny import tiny_model

    from gpt4roi.models import GPT4RoIConfig, GPT4RoIForConditionalGeneration
    from gpt4roi.train.estimate import Shape, activation_bytes, saved_bytes
    from gpt4roi.train.param_groups import set_trainable

    if place.dry:
        model = tiny_model("clip").train()
    else:
        text = {"model_type": "llama", "vocab_size": 32006, "hidden_size": 4096, "intermediate_size": 11008}
        with torch.device(place.device):
            config = GPT4RoIConfig(text_config=text | {"num_hidden_layers": 4, "num_attention_heads": 32})
            model = GPT4RoIForConditionalGeneration(config).train()
    set_trainable(model, ["region_encoder"])
    inputs = example(model, place.device)
    words = inputs["input_ids"].shape[1]
    with torch.autocast(place.device, torch.bfloat16):
        kept = saved_bytes(lambda: model(**inputs, labels=inputs["input_ids"]).loss, model)
    found = {"saved for backward, MiB": kept / 2**20}
    found["estimated, MiB"] = activation_bytes(model, Shape(1, words, 2, words), half=True, checkpointing=False) / 2**20
    if place.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
        weights = sum(tensor.nbytes for tensor in model.state_dict().values())
        found["peak beyond the weights, MiB"] = (torch.cuda.max_memory_allocated() - weights) / 2**20
    return found


CHECKS: dict[str, tuple[int, Callable[[Place], Figures]]] = {
    "attention": (30, attention),
    "bfloat16": (30, bfloat16),
    "roi_align": (30, roi_align),
    "island": (60, island),
    "gpu_tests": (60, gpu_tests),
    "training": (60, training),
    "fsdp": (60, fsdp),
    "four_bit": (30, four_bit),
    "compiled": (60, compiled),
    "memory": (30, memory),
    "benchmark_roi_align": (30, benchmark("roi_align")),
    "benchmark_region_encoder": (30, benchmark("region_encoder", "--channels", "1024")),
    "benchmark_train_step": (60, benchmark("train_step")),
    "benchmark_regions": (60, benchmark("regions")),
    "benchmark_serving": (60, benchmark("serving")),
    "real_size": (300, real_size),
}
"""By name: seconds at most, and the check. In this order, until nine minutes have passed."""

TOTAL_SECONDS = 540
DRY = ("attention", "bfloat16", "roi_align", "gpu_tests", "fsdp", "four_bit", "compiled", "memory")
"""What a dry run takes without --only: what takes seconds on a CPU."""


def example(model: Any, device: str) -> dict[str, Any]:
    """Ids with an image and two regions, as the model is given them."""
    import torch

    config = model.config
    image = [config.image_start_token_id, *[config.image_token_id] * config.image_seq_length, config.image_end_token_id]
    ids = [1, *image, 5, config.region_token_id, 6, config.region_token_id, 7, 8]
    draw = torch.Generator().manual_seed(0)
    dtype = next(model.parameters()).dtype
    return {
        "input_ids": torch.tensor([ids], device=device),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long, device=device),
        "pixel_values": torch.randn(1, 3, config.image_size, config.image_size, generator=draw).to(device, dtype),
        "boxes": [torch.tensor([[0.1, 0.2, 0.6, 0.7], [0.3, 0.1, 0.9, 0.8]], device=device)],
    }


def logits(model: Any, inputs: dict[str, Any]) -> Any:
    """The model's logits in float32 on the CPU."""
    import torch

    with torch.no_grad():
        return (
            model(**inputs | {"pixel_values": inputs["pixel_values"].to(next(model.parameters()).dtype)})
            .logits.float()
            .cpu()
        )


def moved(value: Any, device: str) -> Any:
    """A tensor, or a list of them, on a device."""
    return [one.to(device) for one in value] if isinstance(value, list) else value.to(device)


def expect(right: bool, message: str) -> None:
    """Fails a check."""
    if not right:
        raise AssertionError(message)


def run(command: list[Any]) -> str:
    """Runs a command; returns what it wrote to the standard output."""
    return subprocess.run(
        [str(word) for word in command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def run_module(module: str, *arguments: Any) -> str:
    """Runs a module as `python -m` does."""
    return run([sys.executable, "-m", module, *arguments])


def pytest_counts(arguments: list[str], folder: Path) -> Figures:
    """Runs pytest and returns its last line; fails where a test does."""
    done = subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=folder, stdout=subprocess.PIPE, text=True)
    expect(done.returncode in (0, 5), f"pytest: {done.stdout[-2000:]}")
    return {"pytest": done.stdout.strip().splitlines()[-1]}


def last_loss(folder: Path) -> float:
    """The last loss of a training's log."""
    from tiny_training import losses

    return losses(folder)[-1]


def run_check(name: str, device: str, dry: bool, seconds: float) -> dict[str, Any]:
    """Runs one check in a process of its own; returns outcome, seconds, and figures or the reason."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer.json")
        code = "from scripts.gpu_check import answer; import sys; answer(*sys.argv[1:])"
        command = [sys.executable, "-c", code, name, device, "dry" if dry else "", folder, str(answer)]
        try:
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds)
            lines = done.stdout.decode(errors="replace").strip().splitlines()
            failed = {"outcome": "failed", "why": lines[-1] if lines else f"exit code {done.returncode}"}
            found = json.loads(answer.read_text()) if answer.exists() else failed
        except subprocess.TimeoutExpired:
            found = {"outcome": "failed", "why": f"took more than {seconds:.0f} seconds"}
    return found | {"seconds": round(time.monotonic() - start, 1)}


def answer(name: str, device: str, dry: str, folder: str, path: str) -> None:
    """Runs a check in this process and writes what it gave."""
    try:
        found = {"outcome": "passed", "figures": CHECKS[name][1](Place(device, bool(dry), Path(folder)))}
    except SkippedCheckError as reason:
        found = {"outcome": "skipped", "why": str(reason)}
    Path(path).write_text(json.dumps(found))


def as_markdown(machine: str, found: dict[str, dict[str, Any]]) -> str:
    """Writes the table."""
    lines = [machine, "", "| check | outcome | seconds | figures |", "|---|---|---|---|"]
    for name, row in found.items():
        figures = row.get("figures", {})
        said = "; ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items()
        )
        lines.append(f"| {name} | {row['outcome']} | {row['seconds']} | {said or row.get('why', '')} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Runs the checks; the exit code is 1 where one failed."""
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("exp/gpu_check"), help="where the results go")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU: shows that the checks still run")
    parser.add_argument("--only", nargs="+", choices=CHECKS, metavar="NAME", help=f"of {', '.join(CHECKS)}")
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import torch
    from common import machine

    if not args.dry and not torch.cuda.is_available():
        parser.error("no GPU is seen by PyTorch; --dry runs the checks at tiny size on the CPU")
    args.folder.mkdir(parents=True, exist_ok=True)
    start, found = time.monotonic(), {}
    for name in args.only or (DRY if args.dry else CHECKS):
        left = TOTAL_SECONDS - (time.monotonic() - start)
        limit = min(left, CHECKS[name][0] * (4 if args.dry else 1))
        late = {"outcome": "skipped", "why": "nine minutes have passed; --only runs it alone", "seconds": 0.0}
        found[name] = run_check(name, "cpu" if args.dry else "cuda", args.dry, limit) if left > 5 else late
        print(f"{name}: {found[name]['outcome']} {found[name].get('why', '')}", flush=True)
        (args.folder / "gpu_check.json").write_text(json.dumps({"machine": machine(), "checks": found}, indent=1))
    table = as_markdown(machine(), found)
    (args.folder / "gpu_check.md").write_text(table)
    print("\n" + table)
    return int(any(row["outcome"] == "failed" for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
