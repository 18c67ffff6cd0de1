"""Goes the way of the released weights at their real size, with random weights: delta, apply, open, answer.

    python -m scripts.rehearse_real_size exp/real_size        about 43 GB of disk, 16 GB of memory, no GPU
    python -m scripts.rehearse_real_size exp/tiny --like tests/golden/original_format_folder

Makes a LLaMA-7B and a GPT4RoI-7B in the original's format (368 tensors, float16, sharded), a delta of them, applies
it with --verify, and asks the result about two boxes in bfloat16 on the CPU. Prints seconds, peak memory and disk of
each step, and writes them to rehearsal.json. A step whose result exists is left out: interrupted, it is resumed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
LIKE = GOLDEN / "original_format_folder"
"""A small folder in the original's format: its configuration, tokenizer and vision tower are what is enlarged."""
RECORDED = GOLDEN / "model" / "gpt4roi_7b_state_dict.json"
"""Names and shapes of the released model, as the original's code has them."""

SIZES_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
CLIP_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
COLUMNS = {"seconds": 0, "cpu_seconds": 0, "peak_gb": 2, "disk_gb": 1}
"""Of the printed table, with decimals."""

ADDED_MODULES = ("model.spi_module.", "model.mm_projector.")
SHARD_BYTES = 2**30
MIB = 2**20

Shapes = dict[str, list[int]]


def main(argv: list[str] | None = None) -> int:
    """Runs the steps that are not done, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where everything goes")
    parser.add_argument("--like", type=Path, metavar="FOLDER", help="the size of this model instead of 7B")
    parser.add_argument("--keep", action="store_true", help="keep base, target and delta, 42 GB, when they were used")
    parser.add_argument("--device", default="cpu", help="where the result is opened and asked (default: %(default)s)")
    args = parser.parse_args(argv)
    folder: Path = args.folder
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "rehearsal.json"
    rows: dict[str, dict[str, float]] = json.loads(results.read_text()) if results.exists() else {}
    for name, run, used in steps(folder, args.like, args.device):
        if name not in rows:
            print(f"== {name}", flush=True)
            rows[name] = measured(run)
            results.write_text(json.dumps(rows, indent=1))
        for path in used if not args.keep else ():
            shutil.rmtree(path, ignore_errors=True)
    print("\n| step | seconds | CPU-s | peak memory, GB | disk of the folder afterwards, GB |\n|---|---|---|---|---|")
    for name, row in rows.items():
        values = (f"{row[key]:.{digits}f}" for key, digits in COLUMNS.items())
        print("|", " | ".join((name, *values)), "|")
    return 0


Step = tuple[str, Callable[[], tuple[list[str], Path]], tuple[Path, ...]]


def steps(folder: Path, like: Path | None, device: str) -> Iterator[Step]:
    """Yields name, what makes command and folder of result, and the folders that are not needed afterwards."""
    base, target, delta, result = (folder / name for name in ("llama", "target", "delta", "result"))
    make = [sys.executable, "-c", "from scripts import rehearse_real_size as r; import sys; r.make(*sys.argv[1:])"]
    for name, place in (("base", base), ("target", target)):
        yield f"make the {name} of random weights", lambda p=place, n=name: ([*make, n, str(p), str(like or "")], p), ()
    scripts = [sys.executable, "-m"]
    pair = ["--base", str(base), "--delta", str(delta)]
    yield (
        "make-delta",
        lambda: ([*scripts, "scripts.make_delta", *pair, "--target", str(target), "--max-shard-size", "2GB"], delta),
        (target,),
    )
    tower = ["--vision-tower", str(folder / "clip")]
    yield (
        "apply-delta --verify",
        lambda: ([*scripts, "scripts.apply_delta", *pair, "--target", str(result), "--verify", *tower], result),
        (base, delta),
    )
    image = str(save_image(folder / "image.png"))
    boxes = ["--box", "20,30,200,220", "--box", "220,60,400,300"]
    asked = [*scripts, "gpt4roi.cli", "describe", image, *boxes, "--model", str(result)]
    yield (
        "open in bfloat16 and describe two boxes (8 tokens each)",
        lambda: ([*asked, "--device", device, "--dtype", "bfloat16", "--max-new-tokens", "8"], result),
        (),
    )


def measured(run: Callable[[], tuple[list[str], Path]]) -> dict[str, float]:
    """Runs a command in a process of its own, and returns what it took; ends the rehearsal where it fails."""
    command, result = run()
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"this step failed with exit code {process.returncode}: {' '.join(command)}")
    size = sum(file.stat().st_size for file in result.parent.rglob("*") if file.is_file())
    return {
        "seconds": round(time.monotonic() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 3),
        "disk_gb": round(size / 1e9, 3),
    }


def save_image(path: Path) -> Path:
    """Draws an image of 448 x 336 pixels."""
    from PIL import Image

    Image.linear_gradient("L").resize((448, 336)).convert("RGB").save(path)
    return path


def make(role: str, place: str, like: str) -> None:
    """Writes a base, or a target with its vision tower beside it.

    Args:
        role: `base` or `target`; the target's language model is the base's and a little noise.
        place: The folder to write.
        like: A folder in the original's format that has the wanted size; empty for 7B.
    """
    source, shapes, config = (Path(like), shapes_of(Path(like)), {}) if like else (LIKE, recorded_shapes(), SIZES_7B)
    rows = shapes["model.embed_tokens.weight"][0]
    added = json.loads((source / "added_tokens.json").read_text())
    pieces = rows - len(added)
    config = json.loads((source / "config.json").read_text()) | config
    folder = Path(place)
    shutil.rmtree(folder, ignore_errors=True)  # a step that was interrupted
    folder.mkdir(parents=True)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(source / name, folder / name)
    (folder / "tokenizer.model").write_bytes(padded_tokenizer((source / "tokenizer.model").read_bytes(), pieces))
    if role == "base":
        shapes = base_shapes(shapes, pieces)
        config = llama_config(config, pieces)
    else:
        save_tower(source / "clip", folder.parent / "clip", None if like else CLIP_LARGE)
        config |= {"vocab_size": rows, "mm_vision_tower": "../clip", "torch_dtype": "float16"}
        config |= {} if like else {"mm_hidden_size": CLIP_LARGE["hidden_size"]}
        ids = {token: pieces + number for number, token in enumerate(sorted(added, key=added.__getitem__))}
        (folder / "added_tokens.json").write_text(json.dumps(ids))
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    write_weights(folder, shapes, noisy=role == "target")


def recorded_shapes() -> Shapes:
    """Names and shapes of GPT4RoI-7B, the rotary buffers included."""
    return json.loads(RECORDED.read_text())["entries"]


def shapes_of(folder: Path) -> Shapes:
    """Names and shapes of a folder's weights."""
    from gpt4roi.checkpoint.tensor_files import open_weights

    return {name: list(tensor.shape) for name, tensor in open_weights(folder).tensors.items()}


def base_shapes(shapes: Shapes, rows: int) -> Shapes:
    """What a LLaMA has of these, with so many rows in its tables."""
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    return {
        name: [rows, *shape[1:]] if name in tables else shape
        for name, shape in shapes.items()
        if not name.startswith(ADDED_MODULES) and "inv_freq" not in name
    }


def llama_config(config: dict[str, Any], rows: int) -> dict[str, Any]:
    """The configuration of the plain language model."""
    kept = {key: value for key, value in config.items() if not key.startswith(("mm_", "tune_", "freeze_", "use_mm"))}
    kept |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": rows, "torch_dtype": "float16"}
    return kept | {"pad_token_id": 0}


def padded_tokenizer(model: bytes, pieces: int) -> bytes:
    """A sentencepiece model with so many pieces: messages of a repeated field are appended to the file."""
    import struct

    import sentencepiece

    have = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    for number in range(have, pieces):
        name = f"▁unused{number}".encode()
        piece = b"\x0a" + bytes([len(name)]) + name + b"\x15" + struct.pack("<f", -1e4)
        model += b"\x0a" + bytes([len(piece)]) + piece
    return model


def save_tower(source: Path, place: Path, sizes: dict[str, int] | None) -> None:
    """Writes a CLIP tower of random weights; without sizes, one as the source's."""
    import torch
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    config = CLIPVisionConfig(**sizes) if sizes else CLIPVisionConfig.from_pretrained(source)
    CLIPVisionModel(config).half().save_pretrained(place)
    CLIPImageProcessor(size=config.image_size, crop_size=config.image_size).save_pretrained(place)


def write_weights(folder: Path, shapes: Shapes, noisy: bool) -> None:
    """Writes random float16 tensors as `pytorch_model-*.bin`, one gigabyte a file, with their index."""
    import torch

    normal = torch.Generator().manual_seed(0)  # base and target draw the same numbers, and take them by name
    noise = torch.randn(2**20, generator=normal).mul_(1e-3).half()
    tile = torch.randn(2**16 + max(math.prod(shape) for shape in shapes.values()), generator=normal).mul_(0.02).half()
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        size += 2 * math.prod(shape)
        if size > SHARD_BYTES and groups[-1]:
            groups.append([])
            size = 2 * math.prod(shape)
        groups[-1].append(name)
    index: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        file = f"pytorch_model-{number:05d}-of-{len(groups):05d}.bin"
        shard = {name: drawn(name, shapes[name], tile, noise if noisy else None) for name in group}
        torch.save(shard, folder / file)
        index |= dict.fromkeys(group, file)
        print(f"  {folder.name}: file {number} of {len(groups)}", flush=True)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))


def drawn(name: str, shape: list[int], tile: Any, noise: Any) -> Any:
    """Takes a tensor from the tile; scales of normalizations are near one, rotary buffers are what they are."""
    import torch

    if name.endswith("inv_freq"):
        return 1.0 / 10000 ** (torch.arange(shape[0]).float() / shape[0])
    start = zlib.crc32(name.encode()) % 2**16
    tensor = tile[start : start + math.prod(shape)].clone()
    if noise is not None and not name.startswith(ADDED_MODULES):
        for piece in tensor.split(len(noise)):
            piece += noise[: len(piece)]
    if "norm" in name or name.endswith(".gn.weight"):
        tensor += 1
    return tensor.view(shape)


if __name__ == "__main__":
    sys.exit(main())
