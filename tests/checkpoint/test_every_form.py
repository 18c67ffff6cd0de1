"""Every written form of a model through every command: it answers as the model does, or one line says why not."""

from __future__ import annotations

import functools
import io
import json
from importlib.util import find_spec

import numpy as np
import pytest
from forms import save_every_form
from PIL import Image

import gpt4roi.region_chat
from gpt4roi.checkpoint.loading import open_model
from gpt4roi.cli import main
from gpt4roi.cli._model import open_chat
from gpt4roi.io.model_folders import identify
from gpt4roi.region_chat import RegionChat
from gpt4roi.structures import RegionSample, Turn
from gpt4roi.train import build_model
from gpt4roi.train.command_line import parse_arguments
from gpt4roi.train.work_dir import parse_flags

pytest.importorskip("peft")
pytestmark = pytest.mark.heavy

BOX, QUESTION = [5, 5, 40, 30], "What is <region1>?"
OPENS = ("ours", "original", "delta result", "delta result, original", "merged", "adapter", "checkpoint", "exported")
MODELS = tuple(form for form in OPENS if form != "adapter")
"""What opens and is a model by itself."""
FEW = [pytest.param(form, marks=[] if form in ("ours", "original") else pytest.mark.slow) for form in MODELS]
"""What the fuller tests run on; on the others where `slow` is asked for."""
LIKE = dict.fromkeys(OPENS, "ours") | {"adapter": "merged", "merged": "merged"}
"""The form whose answers another one's are."""
SENTENCES = {
    "delta": "holds a weight delta, not a model; add it to its base: gpt4roi apply-delta",
    "adapter": "holds an adapter, not a model; join it with its base: gpt4roi merge-adapter",
    "base": "model_type is 'llama', expected 'gpt4roi'",
    "quantized": "stores quantized weights (bitsandbytes, 4 bit), which",
}
BENCHMARK = """
import numpy as np
from gpt4roi.evaluation.items import Benchmark, Item
from gpt4roi.evaluation.predictor import Query
from gpt4roi.evaluation.scoring import score_names

def load(source):
    query = Query(source.data, {question!r}, np.array([{box}], float), id="0")
    return [Item("0", query, references=("a fox",))]

BENCHMARK = Benchmark("One", splits=("test",), load=load, score=score_names, max_new_tokens=6)
"""
COMMON = ["--device", "cpu", "--dtype", "float32"]


class OpenedError(Exception):
    """Ends a command that would serve, when its model is open."""


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    place = tmp_path_factory.mktemp("forms")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(place / "image.png")
    boxes = {"images": [{"id": 1, "file_name": "image.png"}], "annotations": [{"id": 1, "image_id": 1}]}
    boxes["annotations"][0]["bbox"] = [*BOX[:2], BOX[2] - BOX[0], BOX[3] - BOX[1]]
    (place / "boxes.json").write_text(json.dumps(boxes))
    (place / "one.py").write_text(BENCHMARK.format(question=QUESTION, box=BOX))
    turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": "a fox"}]
    (place / "lines.jsonl").write_text(json.dumps({"image": "image.png", "boxes": [BOX], "conversations": turns}))
    return save_every_form(place)


@pytest.fixture(scope="module")
def opened():
    """Opens each model once for all commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt4roi.region_chat, "open_model", functools.cache(open_model))
        yield


@pytest.fixture
def run(forms, opened, monkeypatch, tmp_path, capsys):
    """A function that runs an answering command on a form: exit code, its answer and the chat that it opened."""
    chats, place = [], forms["ours"].parent
    real = RegionChat.from_pretrained.__func__
    monkeypatch.setattr(
        RegionChat,
        "from_pretrained",
        classmethod(lambda *args, **named: chats.append(real(*args, **named)) or chats[-1]),
    )
    words = {
        "describe": [place / "image.png", "--box", ",".join(map(str, BOX)), "--question", QUESTION, "--json"],
        "chat": [place / "image.png", "--box", ",".join(map(str, BOX)), "--json"],
        "caption": [place / "boxes.json", "--images", place, "--question", QUESTION, "--out", tmp_path / "out.json"],
        "evaluate": ["--benchmark", place / "one.py", "--data", place / "image.png", "--out", tmp_path / "out"],
        "demo": ["--no-names"],
        "serve": ["--port", "0"],
    }

    def stop(chat):
        raise OpenedError

    def answer(command, out):
        if command in ("describe", "chat"):
            found = json.loads(out)
            return found["answer"] if command == "chat" else found["regions"][0]["answer"]
        if command == "caption":
            return json.loads((tmp_path / "out.json").read_text())["annotations"][0]["caption"]
        if command == "evaluate":
            return json.loads((tmp_path / "out/predictions.jsonl").read_text())["answer"]
        return ask(chats[-1], forms)

    def typed(command, form):
        monkeypatch.setattr("sys.stdin", io.StringIO(QUESTION + "\n"))
        length = ["--max-new-tokens", "6"] if command not in ("demo", "serve") else []
        line = [str(word) for word in (command, *words[command], "--model", forms[form], *COMMON, *length)]
        if command in ("demo", "serve"):
            monkeypatch.setattr(f"gpt4roi.cli.{command}.open_chat", lambda args: stop(open_chat(args)))
        capsys.readouterr()
        try:
            code = main(line)
        except OpenedError:
            code = 0
        out, err = capsys.readouterr()
        return code, err if code else answer(command, out), chats[-1] if chats else None

    return typed


def shown(chat):
    """Returns what decides an answer before the weights do: the ids of a prompt, and where answers stop."""
    sample = RegionSample(np.zeros((64, 96, 3), np.uint8), (Turn("user", QUESTION),), [BOX])
    settings = chat.model.generation_config
    ids = chat.processor(sample, generation=True)["input_ids"][0].tolist()
    return ids, chat.processor.stop_strings, chat.processor.stop_token_ids, settings.eos_token_id


def ask(chat, forms):
    """Returns what a chat answers to the question."""
    return chat.describe(str(forms["ours"].parent / "image.png"), [BOX], QUESTION, max_new_tokens=6)[0]


@pytest.fixture(scope="module")
def answers(forms, opened):
    """What the model, and the one that the adapter makes of it, answer, with all that decides it before the weights."""
    found = {}
    for form in ("ours", "merged"):
        chat = RegionChat.from_pretrained(forms[form], "cpu", "float32")
        found[form] = (ask(chat, forms), *shown(chat))
    assert found["ours"][0] != found["merged"][0]
    return found


@pytest.mark.parametrize("command", ["describe", "chat", "caption", "evaluate", "demo", "serve"])
@pytest.mark.parametrize("form", OPENS)
def test_it_answers_as_the_model_does(run, answers, form, command):
    code, answer, chat = run(command, form)
    assert code == 0, answer
    assert (answer, *shown(chat)) == answers[LIKE[form]]


@pytest.mark.parametrize("command", ["describe", "chat", "caption", "evaluate", "demo", "serve"])
@pytest.mark.parametrize("form", SENTENCES)
def test_one_line_says_why_it_does_not_answer(run, form, command):
    if form in OPENS or (form == "quantized" and find_spec("bitsandbytes")):
        pytest.skip("it answers; what is stored quantized is tested in test_quantized_folders.py")
    code, err, chat = run(command, form)
    told = [line for line in err.splitlines() if ": error: " in line]
    assert code == 2 and len(told) == 1 and SENTENCES[form] in told[0] and chat is None


@pytest.mark.parametrize("form", FEW)
def test_what_is_written_from_it_answers_as_the_model_does(forms, answers, tmp_path, form):
    """Conversion to the other format and back from a delta; export; each result in a folder of its own."""
    source, kind = str(forms[form]), identify(forms[form]).kind
    words = {
        "convert": ["convert", source, "OUT", "--to", "original" if kind == "ours" else "hf"],
        "export": ["export", source, "OUT"],
        "make-delta": ["make-delta", "--base", str(forms["base"]), "--target", source, "--delta", "OUT"],
        "apply-delta": ["apply-delta", "--base", str(forms["base"]), "--delta", str(tmp_path / "make-delta"),
                        "--target", "OUT", "--vision-tower", str(forms["original"] / "clip")],
    }  # fmt: skip
    for command, line in words.items():
        assert main([str(tmp_path / command) if word == "OUT" else word for word in line]) == 0
        if command != "make-delta":
            chat = RegionChat.from_pretrained(tmp_path / command, "cpu", "float32")
            assert (ask(chat, forms), *shown(chat)) == answers[LIKE[form]], command


WRITERS = {
    "convert": ["convert", "FORM", "OUT", "--to", "hf"],
    "make-delta": ["make-delta", "--base", "BASE", "--target", "FORM", "--delta", "OUT"],
    "make-delta, its base": ["make-delta", "--base", "FORM", "--target", "OURS", "--delta", "OUT"],
    "apply-delta": ["apply-delta", "--base", "BASE", "--delta", "FORM", "--target", "OUT"],
    "apply-delta, its base": ["apply-delta", "--base", "FORM", "--delta", "DELTA", "--target", "OUT"],
    "merge-adapter": ["merge-adapter", "FORM", "ADAPTER", "OUT"],
    "export": ["export", "FORM", "OUT"],
    "train": ["train", "--stage", "2", "--model_name_or_path", "FORM", "--output_dir", "OUT"],
    "train --estimate": ["train", "--stage", "2", "--model_name_or_path", "FORM", "--estimate"],
    "data check": ["data", "check", "LINES", "--model", "FORM", "--workers", "1"],
}
BARE, OTHER = "is not a bare language model", "was trained on ours with other weights than"
TOLD = {
    **{(command, form): told for command in WRITERS for form, told in SENTENCES.items()},
    **{("convert", form): "is in the format 'hf' already" for form in ("ours", "delta result", "merged")},
    **{("make-delta, its base", form): BARE for form in (*MODELS, "delta")},
    **{("apply-delta, its base", form): BARE for form in (*MODELS, "delta")},
    **{("apply-delta", form): "is a complete model, not a delta" for form in MODELS},
    **{("merge-adapter", form): OTHER for form in ("delta result", "delta result, original", "merged")},
    ("make-delta", "base"): "the target BASE has no region encoder",
    ("apply-delta", "base"): "the delta BASE has no region encoder",
    ("train", "base"): "not a GPT4RoI folder; stage 2 starts from stage 1's",
}  # fmt: skip
WORKS = {
    *((command, "adapter") for command in ("export", "data check")),
    *((command, "delta") for command in ("export", "apply-delta")),
    *((command, "base") for command in ("make-delta, its base", "apply-delta, its base", "data check")),
    ("train --estimate", "base"),
    *((command, "quantized") for command in ("export", "data check")),
}


@pytest.mark.parametrize(
    ("command", "form"), [pair for pair in TOLD if pair not in WORKS], ids=lambda value: value.replace(" ", "_")
)
def test_one_line_says_why_nothing_is_written(forms, tmp_path, capsys, command, form):
    names = {name.upper(): str(forms[name]) for name in ("base", "ours", "delta", "adapter")}
    names |= {
        "FORM": str(forms[form]),
        "OUT": str(tmp_path / "out"),
        "LINES": str(forms["ours"].parent / "lines.jsonl"),
    }
    assert main([names.get(word, word) for word in WRITERS[command]]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert len(told) == 1 and TOLD[command, form].replace("BASE", names["BASE"]) in told[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["original", pytest.param("checkpoint", marks=pytest.mark.slow)])
def test_an_adapter_is_merged_with_its_base_in_any_form(forms, answers, tmp_path, form):
    assert main(["merge-adapter", str(forms[form]), str(forms["adapter"]), str(tmp_path / "out")]) == 0
    chat = RegionChat.from_pretrained(tmp_path / "out", "cpu", "float32")
    assert (ask(chat, forms), *shown(chat)) == answers["merged"]


@pytest.mark.parametrize("form", [*OPENS, "quantized"])
def test_the_data_check_counts_the_tokens_of_its_prompts(forms, capsys, form):
    words = ["data", "check", str(forms["ours"].parent / "lines.jsonl"), "--workers", "1"]
    found = []
    for model in (forms[form], forms["ours"]):
        assert main([*words, "--model", str(model)]) == 0
        found.append([line for line in capsys.readouterr().out.splitlines() if "of 512 tokens" in line])
    assert found[0] == found[1] != []


def test_stage_2_is_planned_from_a_language_model_before_there_is_a_folder_of_stage_1(forms, capsys):
    parts = ["--model_name_or_path", str(forms["base"]), "--vision_tower", str(forms["original"] / "clip")]
    assert main(["train", "--stage", "2", "--estimate", *parts]) == 0
    assert capsys.readouterr().out.startswith("GiB on each of 1 GPU")


@pytest.mark.parametrize("form", FEW)
def test_a_training_is_planned_from_it_and_opens_it_as_the_commands_do(forms, answers, capsys, form):
    words = ["--stage", "2", "--model_name_or_path", str(forms[form])]
    assert main(["train", *words, "--estimate"]) == 0
    table = capsys.readouterr().out
    assert table.startswith("GiB on each of 1 GPU") and "vision_tower" in table
    arguments = parse_arguments(parse_flags([*words, "--output_dir", "out", "--dataset_config", "x.jsonl"]))
    model, processor = build_model.open_model(None, arguments.model, arguments.training)
    chat = RegionChat(model, processor)
    assert (ask(chat, forms), *shown(chat)) == answers[LIKE[form]]
