"""Wrong inputs of apply-delta and make-delta: one line each, all different, exit code 2, and nothing written.

1 no such base              7 a delta of another width      13 the pointer of a file, not the file
2 a folder without weights  8 a delta of more layers        14 a foreign pickle
3 a missing shard           9 a base of another vocabulary  15 a target that exists
4 a cut-off file           10 a whole model as delta        16 a target that is the base
5 an old-format file       11 a delta of something else     17 a disk that is too small
6 a trained base           12 another base than recorded    18 no tokenizer
"""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from small_weights import (
    add_files,
    base_and_delta,
    base_and_our_delta,
    fine_tuned,
    llama,
    original_delta,
    save,
)

from gpt4roi.cli import main

GIB = 2**30


def pair(place: Path) -> dict[str, Path]:
    base, delta = base_and_delta(place)
    return {"base": base, "delta": delta, "target": place / "out"}


def no_base(place):
    return pair(place) | {"base": place / "llama-7b"}


def no_weights(place):
    folders = pair(place)
    (folders["delta"] / "model.safetensors").unlink()
    return folders


def missing_shard(place):
    base, delta = base_and_delta(place, "bin", shards=3)
    (delta / "pytorch_model-00002-of-00003.bin").unlink()
    return {"base": base, "delta": delta, "target": place / "out"}


def cut_off(place):
    folders = pair(place)
    file = folders["base"] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return folders


def old_format(place):
    folders = pair(place)
    (folders["base"] / "model.safetensors").unlink()
    torch.save(llama(), folders["base"] / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return folders


def trained_base(place):
    folders = pair(place)
    save(folders["base"], fine_tuned(llama()))
    return folders


def other_width(place):
    folders = pair(place)
    save(folders["base"], llama(width=32))
    return folders


def other_depth(place):
    folders = pair(place)
    save(folders["base"], llama(layers=3))
    return folders


def other_vocabulary(place):
    folders = pair(place)
    save(folders["base"], llama(rows=21))
    return folders


def whole_model(place):
    folders = pair(place)
    save(folders["delta"], fine_tuned(llama()))
    return folders


def other_delta(place):
    folders = pair(place)
    plain = {
        name: tensor for name, tensor in original_delta(llama(), fine_tuned(llama())).items() if "spi_" not in name
    }
    save(folders["delta"], plain)
    return folders


def other_base(place):
    base, delta = base_and_our_delta(place)
    save(base, llama(seed=5))
    return {"base": base, "delta": delta, "target": place / "out"}


def pointer(place):
    folders = pair(place)
    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 13476939516\n"
    (folders["delta"] / "model.safetensors").write_bytes(text)
    return folders


def foreign_pickle(place):
    folders = pair(place)
    (folders["delta"] / "model.safetensors").unlink()
    with zipfile.ZipFile(folders["delta"] / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data.pkl", pickle.dumps(Path("x"), protocol=2))
    return folders


def existing_target(place):
    folders = pair(place)
    folders["target"].mkdir()
    (folders["target"] / "notes.txt").write_text("mine")
    return folders


def target_is_base(place):
    folders = pair(place)
    return folders | {"target": folders["base"]}


def small_disk(place):
    """A delta that says it has a table larger than the disk; a file with a hole takes no room."""
    folders = pair(place)
    rows = shutil.disk_usage(place).free // 2**16 + 1
    shape = [rows, 2**16]
    names = {**llama(), **original_delta(llama(), fine_tuned(llama()))}
    for role, dtype, size in (("base", "F16", 2), ("delta", "F16", 2)):
        header, position = {}, 0
        for name, tensor in names.items():
            if role == "base" and ("spi_" in name or "mm_projector" in name):
                continue
            dims = shape if name == "lm_head.weight" else list(tensor.shape)
            dims = [20, 16] if role == "base" and name == "model.embed_tokens.weight" else dims
            length = size * torch.Size(dims).numel()
            header[name] = {"dtype": dtype, "shape": dims, "data_offsets": [position, position + length]}
            position += length
        raw = json.dumps(header).encode()
        with (folders[role] / "model.safetensors").open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            file.truncate(8 + len(raw) + position)
    (folders["delta"] / "added_tokens.json").unlink()
    return folders


def no_tokenizer(place):
    folders = pair(place)
    (folders["delta"] / "tokenizer.model").unlink()
    return folders


WRONG = {
    no_base: "there is no base folder",
    no_weights: "has no weights: expected one of model.safetensors",
    missing_shard: "lacks 1 of its 3 shards (pytorch_model-00002-of-00003.bin)",
    cut_off: "is cut off or damaged (",
    old_format: "is in PyTorch's old format (before 1.6), which can only be read at once and needs",
    trained_base: "is not a bare language model: it has 13 tensors such as",
    other_width: "do not fit: 21 tensors differ in shape, first lm_head.weight [20, 32] in the base and",
    other_depth: "has 9 tensors that the delta",
    other_vocabulary: "has 21 rows in model.embed_tokens.weight, the delta was made from 20",
    whole_model: "is a complete model, not a delta: 5 of its 5 normalisation weights",
    other_delta: "has no region encoder among its 22 tensors",
    other_base: "is not the one that the delta was made from: 21 of 21 tensors have other numbers",
    pointer: "is a pointer of Git LFS (",
    foreign_pickle: "asks for pathlib",
    existing_target: "exists and is not empty",
    target_is_base: "is the base folder itself",
    small_disk: "and its disk has",
    no_tokenizer: "has no tokenizer",
}


def contents(place: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in place.rglob("*")}


def refuse(folders: dict[str, Path], place: Path, capsys) -> str:
    before = contents(place)
    code = main(["apply-delta", *(text for role, path in folders.items() for text in (f"--{role}", str(path)))])
    assert contents(place) == before
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("gpt4roi apply-delta: error: ")


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_wrong_input_is_one_line_that_says_what_is_wrong_and_nothing_is_written(tmp_path, capsys, wrong):
    assert WRONG[wrong] in refuse(wrong(tmp_path), tmp_path, capsys)


def test_every_wrong_input_has_a_line_of_its_own(tmp_path, capsys):
    lines = set()
    for wrong in WRONG:
        place = tmp_path / wrong.__name__
        place.mkdir()
        line = refuse(wrong(place), place, capsys)
        lines.add(line.replace(str(place), "").translate(str.maketrans("", "", "0123456789")))
    assert len(lines) == len(WRONG) == 18


@pytest.mark.parametrize("size", ["5 apples", "0", "-3GB"])
def test_a_shard_size_that_is_none_is_refused(tmp_path, capsys, size):
    folders = pair(tmp_path)
    arguments = [text for role, path in folders.items() for text in (f"--{role}", str(path))]
    assert main(["apply-delta", *arguments, f"--max-shard-size={size}"]) == 2
    assert f"--max-shard-size {size!r} is not a size; write it as 5GB" in capsys.readouterr().err


def test_make_delta_refuses_a_model_without_region_encoder(tmp_path, capsys):
    base = llama()
    save(tmp_path / "base", base)
    add_files(save(tmp_path / "trained", base))
    arguments = ["--base", tmp_path / "base", "--target", tmp_path / "trained", "--delta", tmp_path / "delta"]
    assert main(["make-delta", *map(str, arguments)]) == 2
    assert "has no region encoder among its 21 tensors" in capsys.readouterr().err
    assert not list(tmp_path.glob("delta*"))
