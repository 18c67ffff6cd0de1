"""Export: a copy to give away holds what opens and answers, and nothing of the training and the machine."""

from __future__ import annotations

import json
import shutil

import pytest
from forms import save_chat_model
from small_weights import base_and_our_delta

from gpt4roi.checkpoint.compare import compare_models
from gpt4roi.checkpoint.convert import plan_convert
from gpt4roi.checkpoint.loading import load_model, load_processor, open_model
from gpt4roi.checkpoint.lora import record_base
from gpt4roi.cli import main
from gpt4roi.io.model_folders import DONE, RUN, identify

WORK = ("run.json", "trained.json", "settings.json", "run.lock", "log.txt", "training_args.bin", "watch.html",
        "watch.json", "region_texts.cache", "region_texts.safetensors", "examples.json", "optimizer.pt",
        "rng_state.pth", "modeling_own.py")  # fmt: skip
SECRET = "/home/me/secret project/photographs"


def make_work_directory(folder):
    """Adds what a training leaves beside a model."""
    for name in WORK:
        (folder / name).write_text("{}")
    for name in ("checkpoint-4/optimizer.pt", "runs/events.1", ".cache/features"):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(bytes(1000))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished work directory of a chat model."""
    return make_work_directory(save_chat_model(tmp_path_factory.mktemp("export") / "stage2"))


@pytest.fixture
def work(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "stage2")


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def everything(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_work_directory_is_packed_without_states_logs_caches_and_photographs(work, tmp_path, capsys):
    assert main(["export", str(work), str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"wrote {tmp_path / 'out'}: ours, ")
    assert names(tmp_path / "out") == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "gpt4roi_auto.py",
        "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert all(name in err for name in (*WORK, "checkpoint-4", "runs", ".cache")) and "left out: .cache, " in err
    assert (tmp_path / "out/model.safetensors").read_bytes() == (work / "model.safetensors").read_bytes()
    assert not list(tmp_path.glob("out.*"))


@pytest.mark.heavy
def test_the_copy_answers_as_the_source_does(work, tmp_path):
    assert main(["export", str(work), str(tmp_path / "out")]) == 0
    assert max(compare_models(work, tmp_path / "out").values()) == 0


def test_paths_of_the_machine_are_their_last_part_in_configurations_and_the_card(work, tmp_path, capsys):
    config = json.loads((work / "config.json").read_text())
    config["text_config"]["_name_or_path"] = f"{SECRET}/vicuna"
    (work / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((work / "tokenizer_config.json").read_text())
    (work / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"name_or_path": "C:\\Users\\me\\secret\\lm"}))
    (work / "README.md").write_text(f"# Mine\n\nFrom `{tmp_path}/parts`, ~/secret/x; see /v1/chat/completions.\n")
    assert main(["export", str(work), str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out/config.json").read_text())["text_config"]["_name_or_path"] == "vicuna"
    card = (tmp_path / "out/README.md").read_text()
    assert (
        card == "# Mine\n\nFrom `parts`, x; see /v1/chat/completions.\n"
        and "secret" in (work / "README.md").read_text()
    )
    assert b"secret" not in everything(tmp_path / "out")
    assert f"the path {SECRET}/vicuna of this machine is written as vicuna" in capsys.readouterr().err


@pytest.mark.heavy
def test_shards_and_a_tower_beside_the_weights_go_along(work, tmp_path, capsys):
    plan_convert(work, tmp_path / "original", "original", max_shard_size="100kB").write()
    assert main(["export", str(tmp_path / "original"), str(tmp_path / "out")]) == 0
    assert names(tmp_path / "out") == names(tmp_path / "original")
    assert max(compare_models(work, tmp_path / "out").values()) == 0
    (tmp_path / "original/clip").rename(tmp_path / "elsewhere")
    assert main(["export", str(tmp_path / "original"), str(tmp_path / "bare")]) == 0
    assert "the vision tower clip is not inside; --vision-tower FOLDER adds it" in capsys.readouterr().err
    tower = ["--vision-tower", str(tmp_path / "elsewhere"), "--overwrite"]
    assert main(["export", str(tmp_path / "original"), str(tmp_path / "bare"), *tower]) == 0
    assert names(tmp_path / "bare") == names(tmp_path / "out")


def test_a_delta_is_packed_as_what_it_is(tmp_path, capsys):
    _, delta = base_and_our_delta(tmp_path)
    (delta / "notes.txt").write_text("mine")
    assert main(["export", str(delta), str(tmp_path / "out")]) == 0
    assert names(delta) - names(tmp_path / "out") == {"notes.txt"} and "delta.json" in names(tmp_path / "out")
    assert f"wrote {tmp_path / 'out'}: delta, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / DONE).unlink(), "its training is not finished"),
        (lambda folder: (folder / "config.json").unlink(), "the folder has no config.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'), "model_type is 'llama'"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights: expected one of"),
        (lambda folder: (folder / "model.safetensors").write_bytes(bytes(99)), "is cut off or damaged"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no processor can be opened there"),
    ],
)
def test_what_is_no_complete_model_is_refused_and_nothing_is_left(work, tmp_path, capsys, change, said):
    assert (work / RUN).is_file()
    change(work)
    assert main(["export", str(work), str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.glob("out*"))


def test_a_folder_that_exists_is_replaced_only_when_asked(work, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    assert main(["export", str(work), str(tmp_path / "out")]) == 2
    assert "exists and is not empty; give another folder or add --overwrite" in capsys.readouterr().err
    assert main(["export", str(work), str(work), "--overwrite"]) == 2
    assert main(["export", str(work), str(tmp_path / "out"), "--overwrite"]) == 0
    assert "mine" not in names(tmp_path / "out")


def test_only_an_adapter_is_merged(work, tmp_path, capsys):
    assert main(["export", str(work), str(tmp_path / "out"), "--merge"]) == 2
    assert f"{work} is no adapter but: ours" in capsys.readouterr().err


@pytest.mark.heavy
def test_an_adapter_is_packed_alone_or_merged_with_its_base(trained, tmp_path, capsys):
    peft = pytest.importorskip("peft")
    base, adapter = tmp_path / "secret" / "stage1", tmp_path / "secret" / "lora"
    shutil.copytree(trained, base)
    config = peft.LoraConfig(r=2, target_modules=r"language_model\..*\.q_proj", init_lora_weights=False)
    peft.get_peft_model(load_model(base), config).save_pretrained(adapter)
    load_processor(base).save_pretrained(adapter)
    record_base(adapter, base)
    make_work_directory(adapter)
    assert "[More Information Needed]" in (adapter / "README.md").read_text()
    assert main(["export", str(adapter), str(tmp_path / "out")]) == 0
    assert "it needs its base: the model stage1, in a folder of that name beside it" in capsys.readouterr().err
    assert names(tmp_path / "out") == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "base.json", "chat_template.jinja",
        "gpt4roi_auto.py", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert "# GPT4RoI LoRA adapter" in (tmp_path / "out/README.md").read_text()
    assert main(["export", str(adapter), str(tmp_path / "merged"), "--merge"]) == 0
    base.rename(tmp_path / "stage1")
    assert identify(tmp_path / "merged").kind == "ours" and not list(tmp_path.glob("*.partial"))
    assert b"secret" not in everything(tmp_path / "out") + everything(tmp_path / "merged")
    assert open_model(tmp_path / "out", device="cpu", dtype="float32").dtype.itemsize == 4
