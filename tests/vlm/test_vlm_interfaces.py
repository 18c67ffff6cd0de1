"""Commands, page and API on a pretrained vision-language model with regions, and options of its training."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from serving.api_client import as_data_url, post
from tiny_vlms import noise_image, tiny_vlm

from gpt4roi import RegionChat
from gpt4roi.checkpoint.lora import open_adapter
from gpt4roi.cli import main
from gpt4roi.errors import InputError
from gpt4roi.evaluation import captions
from gpt4roi.models.vlm_base import add_regions, open_regions_vlm
from gpt4roi.processing.batch import RegionCollator
from gpt4roi.structures import RegionSample, Turn

pytestmark = pytest.mark.heavy

BOXES = [[3, 5, 40, 50], [30, 20, 60, 55]]
FEW = {"max_new_tokens": 4}


@pytest.fixture(scope="module")
def chat():
    vlm = tiny_vlm("qwen2_5_vl")
    return RegionChat(vlm.model, vlm.processor)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model and a photograph."""
    vlm, root = tiny_vlm("qwen2_5_vl"), tmp_path_factory.mktemp("base")
    vlm.model.save_pretrained(root / "model")
    vlm.processor.save_pretrained(root / "model")
    noise_image(60, 90).save(root / "photo.png")
    return root


def model_words(folder):
    return ["--model", str(folder / "model"), "--device", "cpu", "--max-new-tokens", "4"]


@pytest.fixture(scope="module")
def expected(chat):
    return chat.describe(noise_image(60, 90), BOXES, **FEW)


def sample(vlm):
    turns = (Turn("user", "What are <region1> and <region2>?"), Turn("assistant", "a b"))
    return vlm.processor.encode(RegionSample(noise_image(60, 90), turns, np.array(BOXES, dtype=float)))


def batch_of(vlm):
    batch = RegionCollator(0)([sample(vlm)])
    return {name: value for name, value in batch.items() if name not in ("n_dropped_rounds", "sources")}


@pytest.mark.parametrize("name", ["qwen2_5_vl", "smolvlm"])
def test_gradient_checkpointing_leaves_loss_and_gradients_as_they_are(name):
    vlm = tiny_vlm(name)
    batch = {key: value for key, value in batch_of(vlm).items() if not key.startswith("n_")}
    found = []
    for checkpointing in (False, True):
        model = copy.deepcopy(vlm.model).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loss = model(**batch, logits_at_targets_only=True).loss
        loss.backward()
        rows = {part: parameter.grad for part, parameter in model.named_parameters() if parameter.grad is not None}
        found.append((loss.item(), rows))
    (plain, rows), (again, others) = found
    assert plain == pytest.approx(again, rel=1e-6) and set(rows) == set(others)
    assert all((rows[part] - others[part]).abs().max() < 1e-4 for part in rows)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "smolvlm"])
def test_several_tokens_a_region_are_counted_and_answered_as_generated(name):
    vlm = tiny_vlm(name)
    model = add_regions(copy.deepcopy(vlm.base), vlm.processor.region_token_id, tokens_per_region=3).eval()
    processor = vlm.processor.with_settings(tokens_per_region=3)
    question = "What are <region1> and <region2>?"
    asked = RegionSample(noise_image(60, 90), (Turn("user", question),), np.array(BOXES, dtype=float))
    batch = processor(asked, generation=True)
    assert (batch["input_ids"] == processor.region_token_id).sum() == 6
    greedy = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    tokens = model.generate(**batch, **FEW, **greedy)[0, batch["input_ids"].shape[1] :]
    chat = RegionChat(model, processor)
    chat.set_image(noise_image(60, 90))
    assert chat.ask(question, BOXES, **FEW) == processor.decode(tokens)
    with pytest.raises(InputError, match="6 <bbox> tokens in the batch but 1 boxes of 3 tokens each"):
        model(**batch | {"boxes": [batch["boxes"][0][:1]]})


def test_a_photograph_that_is_stored_turned_is_answered_as_it_is_seen(chat, expected, tmp_path):
    seen = noise_image(60, 90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    seen.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "stored.png", exif=exif)
    assert Image.open(tmp_path / "stored.png").size == (60, 90)
    assert chat.describe(tmp_path / "stored.png", BOXES, **FEW) == expected


def test_captions_and_a_benchmark_give_what_describe_gives(folder, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(captions, "has_java", lambda: False)
    boxes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in BOXES]
    rows = [{"id": number, "image_id": 0, "bbox": box} for number, box in enumerate(boxes)]
    (tmp_path / "ann.json").write_text(
        json.dumps({"images": [{"id": 0, "file_name": "photo.png"}], "annotations": rows})
    )
    out = tmp_path / "out.json"
    words = ["caption", str(tmp_path / "ann.json"), "--images", str(folder), "--out", str(out)]
    assert main([*words, *model_words(folder)]) == 0, capsys.readouterr().err
    assert [row["caption"] for row in json.loads(out.read_text())["annotations"]] == expected
    turns = [{"from": "human", "value": "What is <region1>?"}, {"from": "gpt", "value": "a thing"}]
    lines = [{"image": str(folder / "photo.png"), "boxes": [box], "conversations": turns} for box in BOXES]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = (
        f"evaluate --benchmark unified --data {tmp_path / 'data.jsonl'} --out {tmp_path / 'run'} --explain 1".split()
    )
    assert main([*words, *model_words(folder)]) == 0, capsys.readouterr().err
    saved = [json.loads(row) for row in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in saved] == [text.strip() for text in expected]
    assert "Red: what the answer depends on, by occlusion" in (tmp_path / "run" / "report.html").read_text()


def test_the_page_and_the_api_give_what_describe_gives(chat, expected):
    from gpt4roi.demo.session import Session
    from gpt4roi.generation.sampling import SamplingParams
    from gpt4roi.processing.uploads import scaled
    from gpt4roi.serving.server import RunningApi, ServingOptions

    running = RunningApi(chat, "tiny", ServingOptions(port=0, api_keys=("sk-tests",)))
    thread = running.start()
    try:
        url = as_data_url(noise_image(60, 90))
        status, found, _ = post(running, "/v1/regions", {"image": url, "boxes": BOXES, "max_tokens": 4})
        assert status == 200, found
        assert [region["answers"][0]["answer"] for region in found["regions"]] == expected
        session = Session(running.worker)
        session.show(scaled(noise_image(60, 90)))
        *_, said = session.ask("What is <region1>?", BOXES[:1], SamplingParams(4))
        assert said == expected[0]
        assert [*session.explain()[0].heatmaps] == ["occlusion"]
    finally:
        running.close()
        thread.join(30)


def test_an_adapter_is_merged_into_a_folder_that_computes_the_same(folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    vlm = tiny_vlm("qwen2_5_vl")
    settings = LoraConfig(
        r=2, target_modules=r".*language_model\..*q_proj", modules_to_save=["region_encoder"], init_lora_weights=False
    )
    adapted = get_peft_model(copy.deepcopy(vlm.model), settings)
    with torch.no_grad():
        adapted.base_model.model.region_encoder.reduce.weight.mul_(1.5)
    adapted.save_pretrained(tmp_path / "adapter")
    assert main(["merge-adapter", str(folder / "model"), str(tmp_path / "adapter"), str(tmp_path / "out")]) == 0
    batch = {key: value for key, value in batch_of(vlm).items() if not key.startswith("n_")}
    with torch.no_grad():
        merged = RegionChat.from_pretrained(tmp_path / "out", device="cpu", dtype="float32").model(**batch).logits
        together = open_adapter(copy.deepcopy(vlm.model), tmp_path / "adapter").eval()(**batch).logits
        assert (merged - together).abs().max() < 1e-3 < (merged - vlm.model(**batch).logits).abs().max()


@pytest.mark.parametrize(("quantize", "layer"), [("4bit", "Linear4bit"), ("8bit", "Linear8bitLt")])
def test_a_base_that_is_quantized_answers_and_its_region_encoder_stays_whole(tmp_path, quantize, layer):
    pytest.importorskip("bitsandbytes", reason="needs the extra bitsandbytes")
    vlm = tiny_vlm("qwen2_5_vl_wide")
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    opened = RegionChat.from_pretrained(tmp_path, device="cpu", dtype="float32", quantize=quantize)
    assert type(opened.model.get_decoder().layers[0].self_attn.q_proj).__name__ == layer
    assert {type(one).__name__ for one in opened.model.region_encoder.modules()}.isdisjoint({layer})
    assert len(opened.describe(noise_image(60, 90), BOXES, **FEW)) == 2


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "region_encoder/model.safetensors",
            b"cut",
            r"encoder/model.safetensors is cut off or damaged .3 bytes",
        ),
        ("region_encoder/model.safetensors", None, "region_encoder has no weights: expected one of model.safetensors"),
        ("region_encoder/config.json", b'{"levels": [1], "depth": 2}', "do not describe one region encoder .*depth"),
        ("model.safetensors", b"cut", r"model/model.safetensors is cut off or damaged"),
        ("model.safetensors", "less", "the weights do not fit the configuration; 1 missing: "),
    ],
)
def test_a_folder_of_which_a_file_is_damaged_is_refused_by_its_name(folder, tmp_path, file, content, message):
    model = shutil.copytree(folder / "model", tmp_path / "model")
    if content is None:
        (model / file).unlink()
    elif content == "less":
        tensors = load_file(model / file)
        del tensors[min(tensors)]
        save_file(tensors, model / file, {"format": "pt"})
    else:
        (model / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_regions_vlm(model)


def test_an_answer_is_explained_from_the_command_line_by_occlusion_alone(folder, capsys):
    words = ["explain", str(folder / "photo.png"), "--box", "3,5,40,50", "--cells", "1", "--answer", "a cat"]
    assert main([*words, *model_words(folder)]) == 0
    answer, part = capsys.readouterr().out.splitlines()
    assert answer == "a cat" and part.startswith("occlusion\t1\t0.")
    assert main([*words, "--methods", "occlusion,gradient", *model_words(folder)]) == 2
    assert "is explained by occlusion, got occlusion, gradient; gradient and att" in capsys.readouterr().err
