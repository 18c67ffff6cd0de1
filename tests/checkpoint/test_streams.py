"""Weights are found in files without reading them: every bit where the header, or the pickle, says it lies."""

from __future__ import annotations

import json
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_weights import assert_equal, llama, save

from gpt4roi.checkpoint.tensor_files import CHUNK_ELEMENTS, DTYPES, chunk_buffer, open_weights
from gpt4roi.checkpoint.writer import PlannedTensor, split_into_shards, write_safetensors
from gpt4roi.errors import InputError
from gpt4roi.io.sizes import parse_size


def read_all(folder) -> dict[str, torch.Tensor]:
    result = {}
    for name, stored in open_weights(folder).tensors.items():
        raw = bytearray(b"".join(bytes(piece) for piece in stored.read(chunk_buffer())))
        result[name] = torch.frombuffer(raw, dtype=DTYPES[stored.dtype]).view(stored.shape)
    return result


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_kind_of_file_gives_the_bits_that_were_saved(tmp_path, kind, shards, dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in llama().items()}
    assert_equal(read_all(save(tmp_path, tensors, kind, shards)), tensors)


def test_a_tensor_longer_than_one_piece_is_read_whole(tmp_path):
    tensors = {"long": torch.arange(2 * CHUNK_ELEMENTS + 7, dtype=torch.float32)}
    assert_equal(read_all(save(tmp_path, tensors, "bin")), tensors)


def test_views_parameters_and_shared_memory_in_a_bin_are_found_in_their_storage(tmp_path):
    storage = torch.randn(40)
    tensors = {
        "middle": storage[8:20].view(3, 4),
        "same": storage[8:20].view(3, 4),
        "learnt": torch.nn.Parameter(torch.randn(2, 2)),
        "one row": storage[:4].view(1, 4),
    }
    got = read_all(save(tmp_path, tensors, "bin"))
    assert_equal(got, {name: tensor.detach() for name, tensor in tensors.items()})


def test_the_state_dict_of_a_module_is_read_with_its_ordered_dict(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    assert_equal(read_all(save(tmp_path, module.state_dict(), "bin")), dict(module.state_dict()))


def test_a_transposed_tensor_in_a_bin_is_refused_with_what_to_do(tmp_path):
    save(tmp_path, {"weight": torch.randn(3, 4).t()}, "bin")
    with pytest.raises(InputError, match=r"weight \[4, 3\] is stored transposed .* \.contiguous\(\)"):
        open_weights(tmp_path)


class Foreign:
    def __reduce__(self):
        return exec, ("raise SystemExit('foreign code ran')",)


def test_code_in_a_bin_is_refused_by_name_and_not_run(tmp_path):
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": Foreign()}, protocol=2))
    with pytest.raises(InputError, match=r"asks for \w+\.exec, .* may run foreign code and was not read"):
        open_weights(tmp_path)


def test_a_training_checkpoint_is_refused_with_what_it_holds(tmp_path):
    torch.save({"state_dict": {"weight": torch.ones(2)}, "step": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds more than tensors by name .*state_dict, step"):
        open_weights(tmp_path)


def test_a_compressed_zip_is_refused(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "plain")
    with (
        zipfile.ZipFile(tmp_path / "plain") as plain,
        zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(InputError, match="is a compressed zip"):
        open_weights(tmp_path)


@pytest.mark.parametrize("damage", ["length", "json", "offsets", "dtype"])
def test_a_damaged_safetensors_header_is_an_error_with_the_files_name(tmp_path, damage):
    record = {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}
    record |= {"offsets": {"data_offsets": [0, 6]}, "dtype": {"dtype": "F4"}}.get(damage, {})
    header = b"{broken" if damage == "json" else json.dumps({"weight": record}).encode()
    length = 10**6 if damage == "length" else len(header)
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(InputError, match=r"model\.safetensors"):
        open_weights(tmp_path)


def test_an_index_that_promises_what_its_shards_lack_is_refused(tmp_path):
    save(tmp_path, llama(), shards=2)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.extra.weight"] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"promises 1 tensors .* model.extra.weight in model-00002-of-00002"):
        open_weights(tmp_path)


def test_a_written_file_is_read_by_the_safetensors_library_with_aligned_data(tmp_path):
    numbers = torch.arange(6, dtype=torch.float32).view(2, 3)
    planned = PlannedTensor("weight", "F32", (2, 3), lambda: iter([memoryview(numbers.numpy()).cast("B")]))
    seen = []
    write_safetensors(tmp_path / "model.safetensors", [planned], seen.append)
    assert_equal(load_file(tmp_path / "model.safetensors"), {"weight": numbers})
    assert int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little") % 8 == 0
    assert seen == [24]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_shards_fill_up_in_order_and_a_large_tensor_gets_its_own():
    def planned(name: str, count: int) -> PlannedTensor:
        return PlannedTensor(name, "F16", (count,), lambda: iter(()))

    shards = split_into_shards([planned("a", 30), planned("b", 20), planned("c", 200), planned("d", 1)], 100)
    assert {name: [tensor.name for tensor in group] for name, group in shards.items()} == {
        "model-00001-of-00003.safetensors": ["a", "b"],
        "model-00002-of-00003.safetensors": ["c"],
        "model-00003-of-00003.safetensors": ["d"],
    }
    assert list(split_into_shards([planned("a", 30)], 100)) == ["model.safetensors"]


def test_sizes_are_read_as_people_write_them():
    assert [parse_size(text) for text in ("5GB", "1.5 GiB", "200", "300mb")] == [5 * 10**9, 3 * 2**29, 200, 3 * 10**8]


def test_safetensors_are_preferred_when_both_kinds_are_there(tmp_path):
    save(tmp_path, {"weight": torch.ones(2)}, "bin")
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert open_weights(tmp_path).files == (tmp_path / "model.safetensors",)
