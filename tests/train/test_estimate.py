"""Memory, told before anything is loaded: counted where it can be, and as autograd keeps it."""

from __future__ import annotations

import sys

import pytest
import torch
from tiny import tiny_model
from transformers import Trainer

from gpt4roi.cli import main as cli
from gpt4roi.errors import InputError
from gpt4roi.train import main, work_dir
from gpt4roi.train.adapters import add_adapters
from gpt4roi.train.arguments import ModelArguments
from gpt4roi.train.build_model import planned_config
from gpt4roi.train.command_line import parse
from gpt4roi.train.estimate import (
    Shape,
    estimate_from_flags,
    estimate_memory,
    format_estimate,
    quantized_bytes,
    saved_bytes,
    sharding_factors,
)
from gpt4roi.train.param_groups import PARTS, module_of, param_groups, set_trainable
from gpt4roi.train.sharding import SHIPPED
from gpt4roi.train.work_dir import parse_flags

ALL = ("region_encoder", "mm_projector", "language_model")
SAMPLES, WORDS, REGIONS = 2, 90, 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind of tiny model."""
    root = tmp_path_factory.mktemp("models")
    for kind in ("clip", "pyramid"):
        tiny_model(kind).save_pretrained(root / kind)
    return root


def estimated_for(argv):
    """Returns the table of a command line."""
    return estimate_from_flags(parse_flags(argv))


def arguments(folder, *more):
    model_args, _, _, args = parse(
        ["--stage", "2", "--output_dir", "/nowhere", "--model_name_or_path", str(folder), "--report_to", "none", *more]
    )
    return model_args, args


def planned(folder, *more):
    start = ["--stage", "2", "--output_dir", "/nowhere", "--model_name_or_path", str(folder), "--report_to", "none"]
    model_args, _, _, args = parse([*start, *more], planning=True)
    return model_args, args


def batch(model):
    """Two samples of an image, three regions and words that are learnt, of which the second ends in padding."""
    config = model.config
    image = [config.image_start_token_id, *[config.image_token_id] * config.image_seq_length]
    ids = [1, *image, config.image_end_token_id, *[config.region_token_id, 50] * REGIONS, *[60] * WORDS]
    labels = [-100] * (len(ids) - WORDS) + [60] * WORDS
    corners = torch.tensor([[0.1, 0.1, 0.5, 0.6]] * REGIONS)
    mask, targets = torch.ones(SAMPLES, len(ids), dtype=torch.long), torch.tensor([labels] * SAMPLES)
    mask[1, -5:], targets[1, -5:] = 0, -100
    return {
        "input_ids": torch.tensor([ids] * SAMPLES),
        "attention_mask": mask,
        "labels": targets,
        "pixel_values": torch.zeros(SAMPLES, 3, config.image_size, config.image_size),
        "boxes": [corners] * SAMPLES,
    }


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["clip", "pyramid"])
@pytest.mark.parametrize("modules", ["region_encoder", ",".join(ALL)])
@pytest.mark.parametrize("half", [False, True])
def test_activations_are_within_a_fifth_of_what_autograd_saves(folders, kind, modules, half):
    model = tiny_model(kind).train()
    set_trainable(model, modules.split(","))
    inputs = batch(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        saved = saved_bytes(lambda: model(**inputs, logits_at_targets_only=True).loss, model)
    flags = ["--trainable_modules", modules, "--activation_checkpointing", "false", "--bf16", str(half)]
    shape = Shape(SAMPLES, inputs["input_ids"].shape[1], REGIONS, SAMPLES * WORDS)
    found = estimate_memory(*arguments(folders / kind, *flags), shape, gpus=1)
    assert found.activations == pytest.approx(saved, rel=0.2)


@pytest.mark.heavy
def test_the_prefix_and_checkpointing_make_them_fewer(folders):
    shape = Shape(2, 120, 3, 100)
    regions, everything = "region_encoder", ",".join(ALL)

    def activations(modules, checkpointing):
        flags = ["--trainable_modules", modules, "--activation_checkpointing", checkpointing]
        return estimate_memory(*arguments(folders / "clip", *flags), shape, gpus=1).activations

    assert activations(regions, "false") < activations(everything, "false")
    assert activations(everything, "true") < activations(everything, "false")


@pytest.mark.heavy
def test_weights_gradients_and_optimiser_are_those_of_the_real_ones(folders):
    model = tiny_model("pyramid")
    set_trainable(model, ("region_encoder", "language_model"))
    model_args, args = arguments(folders / "pyramid", "--trainable_modules", "region_encoder,language_model")
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
    optimiser = kind(param_groups(model, 1e-3, 0, {}), **options)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimiser.step()
    expected = {part: [0, 0, 0] for part in PARTS}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        expected[module_of(name)][0] += tensor.nbytes
        if tensor.requires_grad:
            expected[module_of(name)][1] += tensor.grad.nbytes
            state = [value for value in optimiser.state[tensor].values() if isinstance(value, torch.Tensor)]
            expected[module_of(name)][2] += sum(value.nbytes for value in state)
    found = estimate_memory(model_args, args, Shape(1, 60, 1, 10), gpus=1)
    for part in PARTS:
        assert [found.weights[part], found.gradients[part], found.optimiser[part]] == expected[part], part


@pytest.mark.heavy
def test_adapters_and_their_copies_are_counted(folders):
    model_args, args = arguments(folders / "clip", "--lora_r", "4")
    model = tiny_model("clip")
    set_trainable(model, ("region_encoder", "mm_projector"))
    real = add_adapters(model, ModelArguments(lora_r=4), ALL)
    found = estimate_memory(model_args, args, Shape(1, 60, 1, 10), gpus=1)
    assert sum(found.weights.values()) == sum(t.nbytes for t in (*real.parameters(), *real.buffers()))
    assert sum(found.gradients.values()) == sum(p.nbytes for p in real.parameters() if p.requires_grad)


@pytest.mark.heavy
def test_sharding_spreads_all_but_the_tower(folders):
    one = estimate_memory(*arguments(folders / "clip"), Shape(1, 60, 1, 10), gpus=1)
    model_args, args = arguments(folders / "clip")
    ddp = estimate_memory(model_args, args, Shape(1, 60, 1, 10), gpus=4)
    assert ddp.buckets == sum(one.gradients.values())
    args.fsdp, args.fsdp_config = True, {}
    sharded = estimate_memory(model_args, args, Shape(1, 60, 1, 10), gpus=4)
    assert sharded.weights["vision_tower"] == one.weights["vision_tower"]
    for part in ALL:
        assert sharded.weights[part] == pytest.approx(one.weights[part] / 4, rel=0.01)
        assert sharded.optimiser[part] == pytest.approx(one.optimiser[part] / 4, rel=0.05)
    assert sharding_factors(args, 4).copied is False


@pytest.mark.heavy
def test_deepspeed_in_sixteen_bits_keeps_a_float32_copy_in_the_optimiser_and_stage_3_shards_the_tower(folders):
    shape, gpus = Shape(1, 60, 1, 10), 4
    one = estimate_memory(*arguments(folders / "clip"), shape, gpus=1)
    values = {part: size // 4 for part, size in one.weights.items()}
    model_args, args = arguments(folders / "clip", "--bf16", "true")
    found = {}
    for stage, file in SHIPPED.items():
        args.deepspeed = str(file)
        found[stage] = estimate_memory(model_args, args, shape, gpus)
    for part in ALL:
        assert found["zero2"].weights[part] == pytest.approx(2 * values[part], rel=0.01)  # and a few buffers
        for one_stage in found.values():
            assert one_stage.gradients[part] == pytest.approx(2 * values[part] / gpus, rel=0.01)
            assert one_stage.optimiser[part] == pytest.approx(12 * values[part] / gpus, rel=0.01)
    for part in PARTS:  # all weights are small enough to be held whole besides
        assert found["zero3"].weights[part] == pytest.approx(2 * values[part] * (1 + 1 / gpus), rel=0.01)
    tower = found["zero2"].weights["vision_tower"]
    assert tower == pytest.approx(2 * values["vision_tower"], rel=0.01)
    assert (found["zero2"].buckets, found["zero3"].buckets) == (2 * 2 * 500_000_000, 2 * 500_000_000)


@pytest.mark.heavy
def test_deepspeed_is_planned_where_its_package_is_missing(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    given = ["--stage", "2", "--model_name_or_path", str(folders / "clip"), "--bf16", "true", "--estimate_tokens", "60"]
    small, large = (estimated_for([*given, "--deepspeed", "zero3", "--estimate_gpus", gpus]) for gpus in ("8", "1"))
    assert small.startswith("GiB on each of 8 GPUs")
    assert large.startswith("GiB on each of 1 GPU ")
    with pytest.raises(InputError, match="--fsdp and --deepspeed both shard"):
        estimated_for([*given, "--deepspeed", "zero3", "--fsdp"])


@pytest.mark.heavy
@pytest.mark.parametrize("words", [["--estimate"], ["--estimate", "true"], ["--estimate=True"]])
def test_an_estimate_is_asked_for_by_a_switch(folders, words, capsys):
    given = ["--stage", "2", "--model_name_or_path", str(folders / "clip"), "--estimate_tokens", "60"]
    assert cli(["train", *words, *given]) == 0
    assert capsys.readouterr().out.startswith("GiB on each of")


@pytest.mark.parametrize("words", [["--estimate", "false"], ["--estimate=False"]])
def test_a_switch_that_is_off_trains(tmp_path, words, capsys):
    assert cli(["train", "--stage", "2", "--output_dir", str(tmp_path), *words]) == 2
    assert "vicuna-7b: not a GPT4RoI folder" in capsys.readouterr().err
    work_dir.record_flags(tmp_path, 2, {"seed": ("3",)})
    (tmp_path / "trained.json").write_text("{}")
    main(["--stage", "2", "--output_dir", str(tmp_path), *words])
    assert cli(["train", "--stage", "2", "--output_dir", str(tmp_path), "--estimate", "maybe"]) == 2
    assert "--estimate" in capsys.readouterr().err


@pytest.mark.heavy
def test_flash_attention_is_planned_where_there_is_no_gpu(folders):
    given = ["--stage", "2", "--model_name_or_path", str(folders / "clip"), "--estimate_tokens", "60"]
    for name in ("flash_attention_2", "flash_attention_3"):
        assert estimated_for([*given, "--attn_implementation", name]) == estimated_for(
            [*given, "--attn_implementation", "sdpa"]
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fsdp", "--fsdp_config", '{"cpu_offload": true}'], "--fsdp_config: cpu_offload keeps what is sharded"),
        (["--deepspeed", '{"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}'], "offload_param"),
        (["--deepspeed", '{"zero_optimization": {"stage": 1}}'], "zero_optimization.stage is 1: no estimate is made"),
        (["--optim", "adafactor"], "--optim adafactor: its state grows otherwise"),
    ],
)
def test_no_number_is_told_that_would_be_wrong(folders, words, message):
    given = ["--stage", "2", "--model_name_or_path", str(folders / "clip"), "--estimate_tokens", "60"]
    with pytest.raises(InputError, match=message):
        estimated_for([*given, *words])


@pytest.mark.heavy
def test_layers_that_fsdp_checkpoints_are_planned_so(folders):
    given = ["--fsdp", "--activation_checkpointing"]
    by_fsdp = [*given, "false", "--fsdp_config", '{"activation_checkpointing": true}']
    found = [
        estimate_memory(*planned(folders / "clip", *flags), Shape(2, 120, 3, 100), gpus=2).activations
        for flags in (by_fsdp, [*given, "true"], [*given, "false"])
    ]
    assert found[0] == found[1] < found[2]


def test_four_bits_are_counted_as_bitsandbytes_keeps_them():
    functional = pytest.importorskip("bitsandbytes.functional", reason="--quantization needs bitsandbytes")
    packed, state = functional.quantize_4bit(torch.randn(96, 64), quant_type="nf4")
    assert quantized_bytes(96 * 64, "4bit") == packed.nbytes + state.absmax.nbytes + state.code.nbytes


def test_a_model_of_parts_is_planned_with_the_rows_and_tokens_that_it_would_get(parts):
    given = ModelArguments(model_name_or_path=f"{parts}/language_model", vision_tower=f"{parts}/clip")
    config = planned_config(given)
    assert (config.text_config.vocab_size, config.image_size, config.image_seq_length) == (264, 32, 16)


@pytest.mark.heavy
def test_the_table_of_the_released_model_says_what_eight_gpus_need(tmp_path):
    tiny = tiny_model().config
    tiny.text_config.update(
        {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32006}
    )
    tiny.text_config.update({"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128})
    tiny.save_pretrained(tmp_path)
    flags = ["--estimate_gpus", "8", "--estimate_tokens", "512", "--bf16", "true"]
    lines = {line.split()[0]: line.split()[1:] for line in format_estimate(*arguments(tmp_path, *flags)).splitlines()}
    # 6.74e9 parameters in float32.
    assert float(lines["language_model"][0]) == pytest.approx(25.1, abs=0.1)
    assert float(lines["language_model"][2]) == pytest.approx(50.2, abs=0.2)
    assert float(lines["sum"][0]) > 100


def test_a_sample_shorter_than_its_image_is_refused(folders):
    with pytest.raises(InputError, match="--estimate_tokens 10: an image alone takes 16 tokens"):
        format_estimate(*arguments(folders / "clip", "--estimate_tokens", "10"))
