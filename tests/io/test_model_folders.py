"""What a folder is: one answer for every command, and one sentence for each kind."""

from __future__ import annotations

import json

import pytest

from gpt4roi.cli import main
from gpt4roi.errors import InputError
from gpt4roi.io.model_folders import identify

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 13476939516\n"

FOLDERS = {
    "ours": ({"config.json": {"model_type": "gpt4roi"}}, None),
    "original": ({"config.json": {"model_type": "llava", "mm_vision_tower": "clip"}}, None),
    "adapter": (
        {"adapter_config.json": {"base_model_name_or_path": "exp/stage1"}},
        "holds an adapter, not a model; join it with its base: gpt4roi merge-adapter BASE .* where BASE is exp/stage1",
    ),
    "delta": (
        {"config.json": {"model_type": "llava", "mm_vision_tower": "clip"}, "delta.json": {}},
        "holds a weight delta, not a model; add it to its base: gpt4roi apply-delta --base BASE",
    ),
    "llava": (
        {"config.json": {"model_type": "llava", "vision_config": {}, "text_config": {}}},
        r"is transformers' LLaVA \(model_type 'llava' without mm_vision_tower\), which has no region encoder",
    ),
    "vision-language model": (
        {"config.json": {"model_type": "qwen2_vl", "vision_config": {}}},
        "model_type is 'qwen2_vl', another model of images and text; expected 'gpt4roi'",
    ),
    "language model": (
        {"config.json": {"model_type": "llama"}},
        "model_type is 'llama', expected 'gpt4roi' .*; to start a training from a language model, name it as",
    ),
    "unfinished": (
        {"run.json": {}, "adapter_config.json": {}},
        r"its training is not finished \(trained.json is missing\); finish it, or start from one of its checkpoints",
    ),
    "gguf": ({"model-q4.gguf": {}}, r"holds weights of llama.cpp \(.gguf\), which are not read"),
    "nothing": ({"notes.json": {}}, "no model in .*: the folder has no config.json"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_each_kind_is_told_from_its_small_files_and_has_its_sentence(tmp_path, kind):
    files, sentence = FOLDERS[kind]
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    found = identify(tmp_path)
    assert found.kind == kind
    if sentence is None:
        assert found.require_model() is found
        return
    with pytest.raises(InputError, match=sentence) as error:
        found.require_model()
    assert str(tmp_path) in str(error.value)


def test_a_folder_around_models_names_them_and_a_file_its_folder(tmp_path, capsys):
    for name in ("stage1/config.json", "lora/adapter_config.json", "data/train.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=rf"; there is one in {tmp_path}/lora, {tmp_path}/stage1$"):
        identify(tmp_path).require_model()
    file = tmp_path / "stage1/config.json"
    assert main(["describe", "image.png", "--box", "1,2,3,4", "--model", str(file)]) == 2
    assert main(["export", str(file), str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert f"no model in {file}, which is a file; give its folder: --model {file.parent}" in lines[0]
    assert f"{file} is a file; give the folder that it lies in, {file.parent}" in lines[1]


COMMANDS = {
    "describe": ["describe", "image.png", "--box", "1,2,3,4", "--model", "{folder}"],
    "chat": ["chat", "image.png", "--model", "{folder}"],
    "demo": ["demo", "--model", "{folder}"],
    "caption": ["caption", "boxes.json", "--images", ".", "--out", "out.json", "--model", "{folder}"],
    "evaluate": [
        "evaluate",
        "--benchmark",
        "vg",
        "--data",
        "boxes.json",
        "--images",
        ".",
        "--out",
        "out",
        "--model",
        "{folder}",
    ],
    "convert": ["convert", "{folder}", "out", "--to", "hf"],
    "make-delta": ["make-delta", "--base", "{folder}", "--target", "other", "--delta", "out"],
    "apply-delta": ["apply-delta", "--base", "{folder}", "--delta", "other", "--target", "out"],
    "merge-adapter": ["merge-adapter", "{folder}", "adapter", "out"],
    "train": ["train", "--stage", "2", "--output_dir", "out", "--model_name_or_path", "{folder}"],
    "estimate": ["train", "--stage", "2", "--estimate", "--model_name_or_path", "{folder}"],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_every_command_names_the_pointer_of_git_lfs_that_lies_in_place_of_weights(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/config.json").write_text('{"model_type": "gpt4roi"}')
    (tmp_path / "folder/model.safetensors").write_text(LFS)
    (tmp_path / "adapter").mkdir()
    for file in ("adapter_config.json", "adapter_model.bin"):
        (tmp_path / "adapter" / file).write_text("{}")
    (tmp_path / "boxes.json").write_text('{"images": [], "annotations": [], "categories": []}')
    assert main([word.format(folder="folder") for word in words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "folder/model.safetensors is a pointer of Git LFS (" in error, error
