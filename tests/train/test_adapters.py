"""LoRA and QLoRA: small adapters for the language model, the region encoder in full; they resume and merge."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model, tiny_text_config
from tiny_training import COMMON, FAST, stage1, tensors
from transformers import AutoConfig

from gpt4roi.checkpoint.adapter import merge_adapter
from gpt4roi.checkpoint.loading import load_model
from gpt4roi.checkpoint.lora import merge
from gpt4roi.errors import InputError
from gpt4roi.train import main, training
from gpt4roi.train.adapters import add_adapters, cast_frozen_parameters, check_adapters
from gpt4roi.train.arguments import AdapterArguments
from gpt4roi.train.build_model import check_choices
from gpt4roi.train.command_line import parse_arguments
from gpt4roi.train.param_groups import set_trainable, trainable_table
from gpt4roi.train.work_dir import parse_flags

pytestmark = pytest.mark.heavy

ALL = ("region_encoder", "mm_projector", "language_model")


@pytest.fixture(scope="module")
def base(parts, tmp_path_factory):
    """Stage 1's folder after one step."""
    return stage1(tmp_path_factory.mktemp("base"), parts, steps=1)


def stage2(folder, parts, base, *more, steps=4):
    start = ["--stage", "2", "--output_dir", str(folder), "--model_name_or_path", str(base), "--lora_r", "4"]
    data = ["--dataset_config", f"{parts}/train.jsonl", "--max_steps", str(steps), "--warmup_steps", "0"]
    return main([*start, *data, *COMMON, *FAST, *more])


@pytest.fixture(scope="module")
def adapted(parts, base, tmp_path_factory):
    """Stage 2 with adapters, after four steps."""
    return stage2(tmp_path_factory.mktemp("lora"), parts, base, "--save_steps", "2", "--save_total_limit", "5")


def test_an_adapter_folder_holds_the_adapters_and_the_modules_that_learn_in_full(base, adapted):
    saved = load_file(adapted / "adapter_model.safetensors")
    assert not list(adapted.glob("model*.safetensors"))
    kinds = {name.split(".")[2] for name in saved}
    assert kinds == {"region_encoder", "mm_projector", "language_model"}
    of_language_model = {name.split(".")[-2] for name in saved if ".language_model." in name}
    assert of_language_model == {"lora_A", "lora_B"}
    before, encoder = tensors(base), "region_encoder.output.weight"
    assert saved[f"base_model.model.{encoder}"].shape == before[encoder].shape
    assert not torch.equal(saved[f"base_model.model.{encoder}"], before[encoder])


def test_the_cards_of_a_training_and_of_what_is_merged_name_no_path_of_the_machine(parts, base, adapted, tmp_path):
    merge_adapter(base, adapted, tmp_path / "merged")
    for folder in (base, adapted, tmp_path / "merged", *adapted.glob("checkpoint-*")):
        card = (folder / "README.md").read_text()
        assert card.startswith("---\n# Written by gpt4roi") and "More Information Needed" not in card
        assert not [path for path in (parts, base, tmp_path) if str(path) in card]


def test_the_transposed_layers_of_gpt_2_get_adapters_that_train_and_merge():
    text = AutoConfig.for_model("gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=264, bos_token_id=1)
    model = tiny_model(text_config=text)
    adapted = add_adapters(model, AdapterArguments(lora_r=2), ALL)
    of_language_model = {n.split(".")[-4] for n, p in adapted.named_parameters() if "lora_B" in n and p.requires_grad}
    assert of_language_model == {"c_attn", "c_proj", "c_fc"}
    ids = torch.arange(40, 60)[None]
    adapted(input_ids=ids, labels=ids).loss.backward()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                assert parameter.grad.abs().max() > 0, name
                parameter += 0.1
        expected, before = adapted(input_ids=ids).logits, model.get_output_embeddings().weight.clone()
        merged = merge(adapted)
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-4, rtol=0)
    assert torch.equal(merged.get_output_embeddings().weight, before)


def test_merged_adapters_answer_as_the_model_that_was_trained(base, adapted, tmp_path):
    from peft import PeftModel

    merge_adapter(base, adapted, tmp_path / "merged")
    merged = load_model(tmp_path / "merged")
    trained = PeftModel.from_pretrained(load_model(base), str(adapted)).eval()
    ids = torch.tensor([[1, 40, 41, 42]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, trained(input_ids=ids).logits, atol=2e-5, rtol=0)
        assert (merged(ids).logits - load_model(base)(ids).logits).abs().max() > 1e-3


def test_a_run_with_adapters_resumes_to_the_same_weights(parts, base, adapted, tmp_path, monkeypatch):
    class StoppedError(Exception):
        pass

    original = training.GPT4RoITrainer.training_step

    def stop_in_step_4(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise StoppedError
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(training.GPT4RoITrainer, "training_step", stop_in_step_4)
        stage2(tmp_path / "stopped", parts, base, "--save_steps", "2")
    resumed = main(["--stage", "2", "--output_dir", str(tmp_path / "stopped")])
    whole, again = (load_file(folder / "adapter_model.safetensors") for folder in (adapted, resumed))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_model_with_adapters_answers_about_watched_regions_and_trains_on(parts, base, tmp_path):
    watching = ["--eval_dataset", f"{parts}/train.jsonl", "--eval_steps", "2", "--watch_regions", "2"]
    out = stage2(tmp_path / "out", parts, base, *watching)

    watched = json.loads((out / "watch.json").read_text())
    assert list(watched) == ["0", "2", "4"] and all(len(one["answers"]) == 2 for one in watched.values())


def test_only_adapters_and_the_named_modules_learn_and_the_table_says_how_many():
    model = tiny_model("clip")
    set_trainable(model, ("region_encoder",))
    adapted = add_adapters(
        model, AdapterArguments(lora_r=2, lora_target_modules="q_proj,v_proj"), ("region_encoder", "language_model")
    )
    lines = {line.split()[0]: line.split() for line in trainable_table(adapted, 1e-3, 0, {}, {}).splitlines()}
    # Two layers; q: 32 -> 32, v: 32 -> 16; two ranks each.
    assert lines["language_model"][2] == str(2 * (2 * (32 + 32) + 2 * (32 + 16)))
    assert lines["mm_projector"][2] == "0"
    assert lines["vision_tower"][2] == "0"
    assert int(lines["region_encoder"][2].replace(",", "")) == sum(
        p.numel() for p in tiny_model().region_encoder.parameters()
    )


def test_frozen_modules_can_be_kept_in_half_the_memory():
    model = tiny_model("clip")
    set_trainable(model, ("region_encoder",))
    cast_frozen_parameters(model, "bfloat16")
    kept = {name.split(".")[0]: parameter.dtype for name, parameter in model.named_parameters()}
    assert kept["language_model"] == kept["vision_tower"] == torch.bfloat16
    assert kept["region_encoder"] == torch.float32


@pytest.mark.parametrize(
    ("given", "modules", "ours", "message"),
    [
        ({"lora_r": 8}, ("region_encoder",), True, "add language_model"),
        ({"lora_r": 8}, ALL, False, "needs a GPT4RoI folder to start from"),
        ({"lora_r": -1}, ALL, True, "expected a rank above 0"),
        ({"lora_r": 8, "lora_dropout": 1.0}, ALL, True, "expected 0 or more and below 1"),
        ({"lora_alpha": 8.0}, ALL, True, "--lora_alpha does nothing without --lora_r"),
        ({"quantization": "4bit"}, ALL, True, "quantized weights cannot be trained"),
        ({"lora_r": 8, "quantization": "3bit"}, ALL, True, "expected 4bit or 8bit"),
        ({"frozen_dtype": "int8"}, ALL, True, "expected one of float32, bfloat16, float16"),
    ],
)
def test_adapter_arguments_that_contradict_each_other_are_refused(given, modules, ours, message):
    with pytest.raises(InputError, match=message):
        check_adapters(AdapterArguments(**given), modules, ours)


def test_a_run_that_is_resumed_without_its_base_says_that_the_folder_is_gone(tmp_path):
    (tmp_path / "out/checkpoint-2").mkdir(parents=True)
    words = f"--stage 2 --output_dir {tmp_path}/out --model_name_or_path {tmp_path}/gone --lora_r 2 --use_cpu"
    with pytest.raises(InputError, match="the folder that this run's adapters are for is gone; put it there again"):
        check_choices(parse_arguments(parse_flags(words.split())))


@pytest.mark.parametrize("asked", ["w_qkv", "lm_head", "q_proj,embed_tokens"])
def test_a_layer_that_gets_no_adapter_is_refused_with_those_that_do(asked):
    text = tiny_text_config(tie_word_embeddings=True)  # an adapter on a tied table would be merged into one of two
    wrong = asked.split(",")[-1]
    with pytest.raises(InputError, match=f"no {wrong} in the language model; it has q_proj, k_proj, v_proj"):
        add_adapters(tiny_model(text_config=text), AdapterArguments(lora_r=2, lora_target_modules=asked), ALL)


def test_peft_s_warning_about_a_name_of_transformers_is_not_shown(recwarn):
    add_adapters(tiny_model(), AdapterArguments(lora_r=2), ALL)
    assert not [warning for warning in recwarn if warning.category is FutureWarning]


def test_a_quantized_language_model_learns_by_adapters(parts, base, tmp_path):
    pytest.importorskip("bitsandbytes", reason="--quantization needs bitsandbytes")
    folder = stage2(tmp_path / "q", parts, base, "--quantization", "4bit", steps=3)
    saved = load_file(folder / "adapter_model.safetensors")
    assert max(float(v.abs().max()) for name, v in saved.items() if "lora_B" in name) > 0
    merge_adapter(base, folder, tmp_path / "merged")
    assert load_model(tmp_path / "merged").dtype == torch.float32
