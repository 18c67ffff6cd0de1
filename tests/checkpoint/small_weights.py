"""A LLaMA of a few thousand numbers, its fine-tuned GPT4RoI, and folders of both in any kind of file."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gpt4roi.checkpoint.delta import plan_make
from gpt4roi.constants import ADDED_TOKENS, PAD_TOKEN

WIDTH, INNER, ROWS, LAYERS = 16, 24, 20, 2
TOKENS = (PAD_TOKEN, *ADDED_TOKENS)
CONFIG = {
    "model_type": "llava",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "mm_hidden_size": 8,
    "mm_use_im_start_end": True,
    "mm_vision_tower": "./tower",
    "torch_dtype": "float16",
}


def llama(rows: int = ROWS, width: int = WIDTH, layers: int = LAYERS, seed: int = 0) -> dict[str, torch.Tensor]:
    """Makes float32 weights under LLaMA's names."""
    shapes = {"model.embed_tokens.weight": (rows, width)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{part}_proj.weight": (width, width) for part in "qkvo"}
        shapes |= {f"{prefix}mlp.{part}_proj.weight": (INNER, width) for part in ("gate", "up")}
        shapes |= {f"{prefix}mlp.down_proj.weight": (width, INNER)}
        shapes |= {f"{prefix}{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (rows, width)}
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    return {name: tensor + 1 if name.endswith("norm.weight") else tensor for name, tensor in weights.items()}


def fine_tuned(base: dict[str, torch.Tensor], seed: int = 1) -> dict[str, torch.Tensor]:
    """Makes a float16 GPT4RoI from a base: numbers moved a little, rows of added tokens, a region encoder."""
    generator = torch.Generator().manual_seed(seed)
    model = {}
    for name, tensor in base.items():
        moved = tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            moved = torch.cat([moved, torch.randn(len(TOKENS), tensor.shape[1], generator=generator)])
        model[name] = moved.half()
    width = base["model.norm.weight"].shape[0]
    region = "model.spi_module."
    shapes = {f"{region}mlvl_fuse.fuse_convs.{i}.gn.weight": (8,) for i in range(5)}
    shapes |= {f"{region}roi_align.pconvs.{i}.weight": (8, 8, 3, 3) for i in range(4)}
    shapes |= {f"{region}roi_align.pos_embedd.0.weight": (32, 4), f"{region}roi_align.updims.weight": (width, 8)}
    shapes |= {f"{region}roi_align.flatten_linear.weight": (8, 8 * 196), "model.mm_projector.weight": (width, 8)}
    return model | {name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()}


def save(folder: Path, tensors: dict[str, torch.Tensor], kind: str = "safetensors", shards: int = 1) -> Path:
    """Writes a folder of weights, `safetensors` or `bin`, in one file or in shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "model" if kind == "safetensors" else "pytorch_model"
    write = save_file if kind == "safetensors" else torch.save
    if shards == 1:
        write(tensors, folder / f"{stem}.{kind}")
        return folder
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        group = names[shard::shards]
        file = f"{stem}-{shard + 1:05d}-of-{shards:05d}.{kind}"
        write({name: tensors[name] for name in group}, folder / file)
        weight_map |= dict.fromkeys(group, file)
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def add_files(folder: Path, rows: int = ROWS) -> Path:
    """Puts config and tokenizer files beside the weights of a model whose base has `rows` rows."""
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": rows + len(TOKENS)}))
    (folder / "added_tokens.json").write_text(json.dumps({token: rows + i for i, token in enumerate(TOKENS)}))
    (folder / "tokenizer.model").write_bytes(b"carried along")
    return folder


def original_delta(base: dict[str, torch.Tensor], model: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Subtracts as the original did, with everything in memory."""
    delta = {name: tensor.clone() for name, tensor in model.items()}
    for name, tensor in base.items():
        delta[name][: tensor.shape[0]] -= tensor.half()
    return delta


def original_sum(base: dict[str, torch.Tensor], delta: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Adds as the original did, with everything in memory."""
    result = {name: tensor.clone() for name, tensor in delta.items()}
    for name, tensor in base.items():
        result[name][: tensor.shape[0]] += tensor.half()
    return result


def base_and_delta(place: Path, kind: str = "safetensors", shards: int = 1) -> tuple[Path, Path]:
    """Writes a base and a delta in the form of the released one: without a fingerprint."""
    base = llama()
    delta = original_delta(base, fine_tuned(base))
    return save(place / "base", base, kind, shards), add_files(save(place / "delta", delta, kind, shards))


def base_and_our_delta(place: Path) -> tuple[Path, Path]:
    """Writes a base and a delta made by this package, which knows its base."""
    base = llama()
    save(place / "base", base)
    add_files(save(place / "trained", fine_tuned(base)))
    plan_make(place / "base", place / "trained", place / "delta").write()
    return place / "base", place / "delta"


def load(folder: Path) -> dict[str, torch.Tensor]:
    """Reads all safetensors files of a folder."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def assert_equal(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Compares names, types and every bit."""
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name
