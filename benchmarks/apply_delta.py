"""Applies a delta in two ways, each in a process of its own, and prints memory and time side by side.

    python benchmarks/apply_delta.py [--gigabytes 2]

`load both`: both state dicts in memory, added, saved. `gpt4roi apply-delta` streams. `copy of the bytes`: the least
that anyone must do, base and delta read and as many bytes as the result's written and forced to the disk.
Memory is the peak over a process that has imported the same libraries; times leave the imports out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

from common import CPU_SECONDS, SECONDS, Row, argument_parser, positive, report, rows

SHARDS = 4
WIDTH, INNER, VOCABULARY, ADDED = 2048, 5504, 32000, 6
LAYER_BYTES = 2 * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER + 2 * WIDTH)
TABLE_BYTES = 2 * VOCABULARY * WIDTH
SHORTEST_LAYER = 2
MIB = 2**20
WAYS = LOAD_BOTH, COPY, STREAMED = ("load both", "copy of the bytes", "gpt4roi apply-delta")
MEMORY = "MB"
UNITS = {MEMORY: "peak memory over the interpreter's", CPU_SECONDS: "processor", SECONDS: "clock"}
SUFFIXES = ("safetensors", "bin")


def shapes(layers: int, rows: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a LLaMA with that many layers and rows in its tables."""
    result = {"model.embed_tokens.weight": (rows, WIDTH)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            result[f"{prefix}self_attn.{name}.weight"] = (WIDTH, WIDTH)
        result[f"{prefix}mlp.gate_proj.weight"] = result[f"{prefix}mlp.up_proj.weight"] = (INNER, WIDTH)
        result[f"{prefix}mlp.down_proj.weight"] = (WIDTH, INNER)
        result[f"{prefix}input_layernorm.weight"] = result[f"{prefix}post_attention_layernorm.weight"] = (WIDTH,)
    return result | {"model.norm.weight": (WIDTH,), "lm_head.weight": (rows, WIDTH)}


def region_shapes() -> dict[str, tuple[int, ...]]:
    """A small region encoder and projector under the original's names."""
    region = "model.spi_module."
    result = {f"{region}mlvl_fuse.fuse_convs.{i}.conv.weight": (64, 64, 3, 3) for i in range(5)}
    result |= {f"{region}roi_align.pconvs.{i}.weight": (64, 64, 3, 3) for i in range(4)}
    result |= {f"{region}roi_align.pos_embedd.0.weight": (256, 4)}
    result |= {f"{region}roi_align.flatten_linear.weight": (64, 64 * 196)}
    return result | {f"{region}roi_align.updims.weight": (WIDTH, 64), "model.mm_projector.weight": (WIDTH, 64)}


def make_model(folder: Path, wanted: dict[str, tuple[int, ...]], scale: float, suffix: str, seed: int) -> None:
    """Writes random float16 weights in four shards with their index."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    noise = (
        torch.randn(VOCABULARY * WIDTH + WIDTH * 64, generator=torch.Generator().manual_seed(seed)).mul_(scale).half()
    )
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = list(wanted)
    weight_map = {}
    for shard in range(SHARDS):
        file = f"{stem}-{shard + 1:05d}-of-{SHARDS:05d}.{suffix}"
        group = names[shard * len(names) // SHARDS : (shard + 1) * len(names) // SHARDS]
        tensors = {}
        for place, name in enumerate(group):
            count = torch.Size(wanted[name]).numel()
            tensors[name] = noise[place : place + count].clone().view(wanted[name])
        (save_file if suffix == "safetensors" else torch.save)(tensors, folder / file)
        weight_map |= dict.fromkeys(group, file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def make_delta(folder: Path, layers: int, suffix: str) -> None:
    """Writes a delta in the form of the released one: no fingerprint, added tokens, a tower named but absent."""
    make_model(folder, shapes(layers, VOCABULARY + ADDED) | region_shapes(), 1e-3, suffix, seed=1)
    tokens = ("[PAD]", "<im_patch>", "<bbox>", "<point>", "<im_start>", "<im_end>")
    (folder / "added_tokens.json").write_text(json.dumps({t: VOCABULARY + i for i, t in enumerate(tokens)}))
    (folder / "tokenizer.model").write_bytes(b"only carried along here")
    config = {"model_type": "llava", "hidden_size": WIDTH, "mm_vision_tower": "./tower", "mm_hidden_size": 64}
    (folder / "config.json").write_text(json.dumps(config))


def load_both(work: Path, suffix: str) -> None:
    """The usual way: everything in memory, added, saved in shards."""
    import torch
    from safetensors.torch import load_file, save_file

    def load(folder: Path) -> dict[str, torch.Tensor]:
        tensors = {}
        for file in sorted(folder.glob(f"*.{suffix}")):
            tensors |= load_file(file) if suffix == "safetensors" else torch.load(file, weights_only=True)
        return tensors

    base, result = load(work / "base"), load(work / "delta")
    for name, tensor in result.items():
        if name in base:
            tensor[: base[name].shape[0]] += base[name]
    (work / "out").mkdir()
    names = list(result)
    for shard in range(SHARDS):
        group = names[shard * len(names) // SHARDS : (shard + 1) * len(names) // SHARDS]
        path = work / "out" / f"model-{shard}.safetensors"
        save_file({name: result[name] for name in group}, path)
        force(path)


def streamed(work: Path, _suffix: str) -> None:
    """Our way, as the command line runs it."""
    from gpt4roi.cli import main

    shard = sum(file.stat().st_size for file in (work / "delta").glob("*-of-*")) // SHARDS + MIB
    places = ["--base", str(work / "base"), "--delta", str(work / "delta"), "--target", str(work / "out")]
    if main(["apply-delta", *places, "--max-shard-size", str(shard)]) != 0:
        raise SystemExit("apply-delta failed")


def copy(work: Path, suffix: str) -> None:
    """Reads base and delta once and writes the delta's bytes."""
    (work / "out").mkdir()
    buffer = memoryview(bytearray(2 * MIB))
    for file in (work / "base").glob(f"*.{suffix}"):
        with file.open("rb", buffering=0) as source:
            while source.readinto(buffer):
                pass
    for file in (work / "delta").glob(f"*.{suffix}"):
        shutil.copyfile(file, work / "out" / file.name)
        force(work / "out" / file.name)


def force(path: Path) -> None:
    """Waits until a file is on the disk."""
    handle = os.open(path, os.O_RDWR)
    os.fsync(handle)
    os.close(handle)


def peak_bytes() -> int:
    """Highest resident memory of this process so far; unlike ru_maxrss it does not inherit the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def child(way: str, work: Path, suffix: str) -> None:
    """Runs one way in this process and prints what it cost beyond the imports."""
    if way != COPY:
        for name in ("gpt4roi.checkpoint.delta", "gpt4roi.cli._writing", "tqdm"):
            import_module(name)
    before, started, used = peak_bytes(), time.perf_counter(), cpu_seconds()
    {LOAD_BOTH: load_both, STREAMED: streamed, COPY: copy}[way](work, suffix)
    clock, processor = time.perf_counter() - started, cpu_seconds() - used
    spent = {SECONDS: clock, CPU_SECONDS: processor, MEMORY: (peak_bytes() - before) / 1e6}
    sys.stdout.write("\n" + json.dumps(spent) + "\n")


def run_apart(way: str, work: Path, suffix: str) -> dict[str, float]:
    """Runs one way in a fresh process."""
    shutil.rmtree(work / "out", ignore_errors=True)
    os.sync()
    command = [sys.executable, __file__, "--way", way, "--folder", str(work), "--suffix", suffix]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(answer.splitlines()[-1])


def digest(folder: Path) -> dict[str, bytes]:
    """Hashes every tensor under its original name, to compare the two results."""
    import hashlib

    from gpt4roi.checkpoint.tensor_files import chunk_buffer, list_tensors
    from gpt4roi.models.original_format import to_ours

    result = {}
    for file in folder.glob("*.safetensors"):
        for name, tensor in list_tensors(file).items():
            hasher = hashlib.sha256()
            for piece in tensor.read(chunk_buffer()):
                hasher.update(piece)
            result[to_ours(name)] = hasher.digest()
    return result


def measure(
    quick: bool,
    gigabytes: float = 2.0,
    repeats: int = 3,
    suffixes: Sequence[str] = SUFFIXES,
    folder: Path | None = None,
) -> Iterator[Row]:
    """Compares the three ways on a model of a size, for each kind of file; folder: where to work."""
    if quick:
        gigabytes, repeats, suffixes = 0, 1, SUFFIXES[:1]
    layers = max(SHORTEST_LAYER, round((gigabytes * 1e9 - 2 * TABLE_BYTES) / LAYER_BYTES + 0.5))
    for suffix in suffixes:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            yield from compare(Path(temporary), layers, suffix, repeats)


def compare(work: Path, layers: int, suffix: str, repeats: int) -> Iterator[Row]:
    """Makes the two folders and runs the three ways in turn."""
    make_model(work / "base", shapes(layers, VOCABULARY), 2e-2, suffix, seed=0)
    make_delta(work / "delta", layers, suffix)
    size = sum(file.stat().st_size for file in (work / "delta").glob(f"*.{suffix}"))
    spent: dict[str, dict[str, list[float]]] = {unit: {way: [] for way in WAYS} for unit in UNITS}
    results = {}
    for _ in range(repeats):
        for way in WAYS:
            found = run_apart(way, work, suffix)
            for unit in UNITS:
                spent[unit][way].append(found[unit])
            if way != COPY:
                results[way] = digest(work / "out")
    assert results[LOAD_BOTH] == results[STREAMED], "the two results differ"
    for unit, ways in spent.items():
        title = f"{size / 1e9:.1f} GB in {SHARDS} files, {suffix}: {UNITS[unit]}"
        compared = {way: values for way, values in ways.items() if unit != MEMORY or way != COPY}
        yield from rows(title, compared, "equal bit for bit", unit=unit, alternatives=len(compared) - 1)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the model")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--repeats", type=positive, default=3, help="runs of each way")
    parser.add_argument("--suffix", choices=SUFFIXES, help="only this kind of file")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        child(args.way, args.folder, args.suffix)
        return
    suffixes = [args.suffix] if args.suffix else SUFFIXES
    report(measure(args.quick, args.gigabytes, args.repeats, suffixes, args.folder), args)


if __name__ == "__main__":
    main()
