"""Wrong command lines of a training: one readable error each, before any model is opened where that is possible."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_processor

from gpt4roi.errors import InputError
from gpt4roi.train import build_model, main, training

ROOT = Path(__file__).parents[2]
DATA = "--dataset_config {parts}/train.jsonl"
ONE = "--stage 1 --output_dir {tmp}/out"
NEW = f"{ONE} {DATA} --model_name_or_path {{parts}}/language_model --vision_tower {{parts}}/clip"
LIGHT = f"{NEW} --vision_tower {{parts}}/pyramid --region_encoder_type light"
TWO = f"--stage 2 --output_dir {{tmp}}/out {DATA} --model_name_or_path {{wrong}}/whole"

BEFORE_ANY_MODEL = [
    ("--output_dir {tmp}/out --stage 3", "--stage must be 1 or 2, got '3'"),
    ("--stage 1", "--output_dir is missing"),
    (f"{NEW} --learning_rat 1", "unknown arguments: --learning_rat 1"),
    (f"{NEW} --max_steps many", "argument --max_steps.*invalid int value: 'many'"),
    (f"{NEW} --bf16 true --fp16 true", "arguments: .*fp16 and bf16"),
    (
        f"{NEW} --global_batch_size 6 --per_device_train_batch_size 4",
        "--global_batch_size 6 is not a multiple of the 4",
    ),
    (f"{NEW} --global_batch_size 0", "--global_batch_size: got 0, expected 1 or more"),
    (f"{NEW} --learning_rate -1", "--learning_rate: got -1.0, expected 0 or more"),
    (f"{NEW} --max_bad_fraction 2", r"--max_bad_fraction: got 2.0, expected a fraction from 0 to 1"),
    (f"{NEW} --trainable_modules vision_tower", "--trainable_modules: got 'vision_tower', expected some of"),
    (f"{NEW} --learning_rates vision_tower=1", "--learning_rates: got 'vision_tower=1', expected module=number"),
    (f"{NEW} --weight_decays region_encoder", "--weight_decays: got 'region_encoder', expected module=number"),
    (f"{NEW} --prompt_format vicuna", "--prompt_format: got 'vicuna', expected one of v0, v1, llava_v1, chat"),
    (f"{NEW} --region_encoder_type heavy", "--region_encoder_type: got 'heavy', expected gpt4roi or light"),
    (f"{NEW} --attn_implementation flash", "--attn_implementation: got 'flash', expected one of eager, sdpa"),
    (f"{NEW} --attn_implementation flash_attention_2 --use_cpu true", "flash_attention_2 needs a GPU.*choose sdpa"),
    (f"{NEW} --image_grid_size 4", "--image_grid_size is for --region_encoder_type light"),
    (f"{NEW} --region_mixup 0.5", "--region_mixup and --region_noise are for --region_encoder_type light"),
    (
        f"{NEW} --bf16 --frozen_dtype float16",
        "--frozen_dtype float16 does not go with .* bfloat16; give --frozen_dtype b",
    ),
    (f"{NEW} --lora_r 8", "--lora_r 8 is for a language model that is trained"),
    (f"{NEW} --lora_alpha 16", "--lora_alpha does nothing without --lora_r"),
    (f"{TWO} --quantization 4bit", "quantized weights cannot be trained; add --lora_r"),
    (f"{NEW} --eval_strategy steps", "--eval_strategy steps needs --eval_dataset"),
    (f"{NEW} --eval_on_start", "--eval_on_start needs --eval_dataset"),
    (f"{NEW} --save_strategy best", "--save_strategy best needs --metric_for_best_model"),
    (f"{NEW} --use_liger_kernel", "--use_liger_kernel needs the package liger-kernel"),
    (f"{NEW} --dataloader_num_workers 2 --dataloader_persistent_workers true", "would draw the first epoch's samples"),
    (f"{NEW} --save_only_model true", "would begin with an empty optimiser; leave it out"),
    (f"{NEW} --ignore_data_skip true", "would train on its epoch's first samples again; leave it out"),
    (f"{NEW} --auto_find_batch_size true", "would change the samples in a step; leave it out"),
    (f"{NEW} --train_sampling_strategy group_by_length", "would draw another order; the samples of a step are sorted"),
    (f"{NEW} --label_smoothing_factor 0.1", "--label_smoothing_factor: it does nothing"),
    (f"{NEW} --max_steps 0", "--max_steps 0 and --num_train_epochs 2: nothing would be trained"),
    (f"{NEW} --num_train_epochs 0", "--max_steps -1 and --num_train_epochs 0: nothing would be trained"),
    (f"{NEW} --optim apollo_adamw --optim_target_modules q_proj", "--optim apollo_adamw cannot be used: .*install"),
    (f"{NEW} --lr_scheduler_type cosine_with_min_lr", "cosine_with_min_lr cannot be used: .*lr_scheduler_kwargs"),
    (f"{NEW} --seed -1", "--seed: got -1, expected 0 or more"),
    (f"{NEW} --eval_dataset {{parts}}/train.jsonl --watch_regions -1", "--watch_regions: got -1, expected 0 or more"),
    (f"{NEW} --dataloader_num_workers 1 --dataloader_prefetch_factor 0", "prefetch_factor: got 0, expected 1 or more"),
    (f"{LIGHT} --align_regions 1 --align_batch_size 0", "--align_batch_size: got 0, expected 1 or more"),
    (f"{LIGHT} --region_noise nan", "--region_noise: got nan, expected 0 or more"),
    (f"{NEW} --report_to carrierpigeon", "carrierpigeon is not supported"),
    (f"{NEW} --resume_from_checkpoint x", "--resume_from_checkpoint: give the work directory alone"),
    (f"{ONE} --dataset_config {{tmp}}/no.json", "no.json: no such file"),
    (f"{ONE} --dataset_config {{wrong}}/list.json", "list.json, data set 0: unknown type 'movies'"),
    (f"{ONE} --dataset_config {{wrong}}/empty.jsonl", "empty.jsonl: .*no"),
    (f"{NEW} --eval_dataset {{tmp}}/held_out.jsonl", "held_out.jsonl: no such file"),
    (f"--stage 2 --output_dir {{tmp}}/out {DATA}", "vicuna-7b: not a GPT4RoI folder; stage 2 starts from stage 1's"),
    (f"{TWO} --model_name_or_path {{wrong}}/unfinished", "unfinished: its training is not finished"),
    (f"{TWO} --model_name_or_path {{wrong}}/adapter", "adapter holds an adapter, not a model; join it with its base"),
    (f"--stage 1 --output_dir {{wrong}}/list.json {DATA}", "list.json is a file; --output_dir names a folder"),
    (f"--stage 1 --output_dir {{wrong}}/whole {DATA}", "holds config.json but no run of this training"),
]
"""What can be seen from the words, the data and small files."""

SHARDING_DEVICES_AND_WORK_DIRECTORIES = [
    (f"{NEW} --fsdp", "--fsdp needs GPUs: on the CPU the Trainer would silently train full copies"),
    (f"{NEW} --fsdp full_shard --deepspeed zero2", "--fsdp and --deepspeed both shard; give one of them"),
    (f"{NEW} --fsdp_config {{wrong}}/version3.json", "--fsdp_config does nothing without --fsdp"),
    (f"{NEW} --fsdp --fsdp_config {{tmp}}/no.json", "--fsdp_config: .*no.json: no such file"),
    (f"{NEW} --fsdp --fsdp_config {{wrong}}/list.json", "list.json: expected a JSON object, got list"),
    (f"{NEW} --fsdp --fsdp_config {{wrong}}/version3.json", "--fsdp_config: version must be 1 or 2, got 3"),
    (f"{NEW} --deepspeed", "--deepspeed: give zero2, zero3, or a JSON file"),
    (f"{NEW} --deepspeed zero9", "--deepspeed: zero9: no such file; shipped are zero2 and zero3"),
    (f"{NEW} --deepspeed {{wrong}}/empty.jsonl", "--deepspeed: .*empty.jsonl: not valid JSON"),
    (f"{NEW} --deepspeed {{wrong}}/stage5.json", "--deepspeed: zero_optimization.stage must be 0 to 3, got 5"),
    (f"{NEW} --fp16", "--fp16 needs a GPU"),
    (f"{NEW} --tf32 true", "--tf32 needs a GPU"),
    (f"{NEW} --global_batch_size 8 --gradient_accumulation_steps 3", "3 x 1 samples at once are 3; give one of them"),
    (f"{NEW} --gradient_accumulation_steps few", "--gradient_accumulation_steps: got 'few', expected a whole number"),
    (f"{NEW} --warmup_ratio 0.003", "instead of --warmup_ratio give --warmup_steps, which takes a fraction"),
    (f"{NEW} --lora_enable True", "instead of --lora_enable give --lora_r 16"),
    (f"{NEW} --bits 4", "instead of --bits give --quantization 4bit"),
    (f"{NEW} --mm_projector_lr 2e-5", "instead of --mm_projector_lr give --learning_rates mm_projector=2e-5"),
    (f"{NEW} --data_path x.json", "instead of --data_path give --dataset_config"),
    (f"{NEW} --image_folder x", "instead of --image_folder give a file that names each data set's images: --data"),
    (f"{NEW} --group_by_modality_length True", "give nothing: the samples of a step are sorted by length"),
    (f"{NEW} --freeze_backbone True", "instead of --freeze_backbone give --trainable_modules region_encoder"),
    (f"{NEW} --trust_remote_code true", "give nothing: code in a model's folder is never run"),
    (f"{NEW} --mm_vision_tower_lr 1e-6", "give nothing: the vision tower stays frozen"),
    (f"{NEW} --mm_use_im_patch_token False", "give nothing: the image's tokens are its patches"),
    (f"{NEW} --load_in_4bit True", "instead of --load_in_4bit give --quantization 4bit"),
    (f"{NEW} --epochs 3", "instead of --epochs give --num_train_epochs"),
    (f"{NEW} --load_from x", "instead of --load_from give --model_name_or_path"),
    (f"{NEW} --fsdp_transformer_layer_cls_to_wrap LlamaDecoderLayer", "give nothing: the layers are found"),
    (f"{NEW} --gradient_checkpoint true", "did you mean --gradient_checkpointing"),
    (f"{NEW} --output_dir {{wrong}}/list.json/out", "list.json/out: cannot be written to"),
    (f"{NEW} --output_dir {{wrong}}/of_stage_2", "of_stage_2 holds a run of stage 2, not 1"),
    (f"{NEW} --output_dir {{wrong}}/other", r"holds a run with other arguments \(they differ in --dataset_config, --"),
    (f"{NEW} --output_dir {{wrong}}/damaged", "run.json: damaged; delete it to start anew"),
]

WHILE_OPENING = [
    (f"{NEW} --vision_tower {{tmp}}/clip", "vision tower .*/clip.* not found: looked for a config.json"),
    (f"{NEW} --model_name_or_path {{tmp}}/llama", "llama: no tokenizer can be opened there"),
    (f"{NEW} --model_name_or_path {{wrong}}/no_weights", "no_weights: cannot be opened"),
    (f"{LIGHT} --pretrain_mm_mlp_adapter {{tmp}}/mm_projector.bin", "mm_projector.bin: no such projector file"),
    (f"{NEW} --mm_vision_select_layer -40", "give 0 levels from mm_vision_select_layer=-40"),
    (f"{LIGHT} --prompt_format chat --model_max_length 12", "too long|none of the first"),
    (f"{TWO} --model_name_or_path {{wrong}}/half", "half: the weights do not fit the configuration; .*missing"),
    (f"{TWO} --model_name_or_path {{wrong}}/bare", r"bare has no weights: expected one of model\.safetensors"),
    (f"{TWO} --prompt_format v1", "--prompt_format v1 does not fit the model"),
]
"""What is known only once a part is opened; tiny here."""


@pytest.fixture(scope="module")
def wrong(parts, tmp_path_factory):
    """Folders and files that are not what they should be."""
    root = tmp_path_factory.mktemp("wrong")
    model = tiny_model()
    model.save_pretrained(root / "whole")
    tiny_processor(model.config).save_pretrained(root / "whole")
    for name in ("bare", "half", "unfinished"):
        shutil.copytree(root / "whole", root / name)
    (root / "bare" / "model.safetensors").unlink()
    (root / "unfinished" / "run.json").write_text(json.dumps({"stage": 1, "arguments": []}))
    tensors = load_file(root / "whole" / "model.safetensors")
    tensors.pop("mm_projector.weight")
    save_file(tensors, root / "half" / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(parts / "language_model", root / "no_weights")
    (root / "no_weights" / "model.safetensors").unlink()
    (root / "adapter").mkdir()
    (root / "adapter" / "adapter_config.json").write_text("{}")
    (root / "list.json").write_text(json.dumps([{"type": "movies", "ann_file": "a"}]))
    (root / "empty.jsonl").write_text("")
    (root / "version3.json").write_text('{"version": 3}')
    (root / "stage5.json").write_text('{"zero_optimization": {"stage": 5}}')
    for name, text in (
        ("of_stage_2", '{"stage": 2, "arguments": []}'),
        ("other", '{"stage": 1, "arguments": ["--seed", "3"]}'),
        ("damaged", '{"stage": 1'),
    ):
        (root / name).mkdir()
        (root / name / "run.json").write_text(text)
    return root


def said(arguments, parts, wrong, tmp_path):
    """Returns what the training says of a wrong command line, and that it left no checkpoint."""
    with pytest.raises(InputError) as caught:
        main(arguments.format(tmp=tmp_path, parts=parts, wrong=wrong).split())
    assert not list(tmp_path.rglob("checkpoint-*"))
    return str(caught.value)


@pytest.mark.parametrize(("arguments", "message"), BEFORE_ANY_MODEL + SHARDING_DEVICES_AND_WORK_DIRECTORIES)
def test_it_is_said_before_any_model_is_opened(parts, wrong, tmp_path, monkeypatch, arguments, message):
    for module in (build_model, training):
        for name in ("load_model", "build_from_parts", "open_model"):
            monkeypatch.setattr(module, name, _too_late, raising=False)
    assert_one_line(said(arguments, parts, wrong, tmp_path), message)


@pytest.mark.heavy
@pytest.mark.parametrize(("arguments", "message"), WHILE_OPENING)
def test_it_is_said_while_the_parts_are_opened(parts, wrong, tmp_path, arguments, message):
    assert_one_line(said(arguments, parts, wrong, tmp_path), message)


def test_deepspeed_that_is_not_installed_is_named(parts, wrong, tmp_path, monkeypatch):
    monkeypatch.setattr("gpt4roi.train.sharding.find_spec", lambda name: None)
    assert_one_line(said(f"{NEW} --deepspeed zero3", parts, wrong, tmp_path), "pip install 'gpt4roi.deepspeed.'")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train_stage1.sh", "usage: bash train_stage1.sh WORKDIR"),
        ("train_stage2.sh --model_name_or_path x", "usage: bash train_stage2.sh WORKDIR STAGE1"),
        ("train_stage1.sh {wrong}/list.json", "list.json: not a folder that can be written to"),
        ("scripts/launch_nodes.sh 2 train_stage1.sh out", "usage: bash scripts/launch_nodes.sh NODES HOST:PORT"),
        ("scripts/launch_nodes.sh 2 one:29500 stage3.sh out", "usage: bash scripts/launch_nodes.sh NODES HOST:PORT"),
    ],
)
def test_the_scripts_say_how_they_are_called_without_starting_anything(wrong, line, message):
    words = line.format(wrong=wrong).split()
    done = subprocess.run(["bash", *words], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert_one_line(done.stderr.strip(), message)


def _too_late(*args, **kwargs):
    raise AssertionError("a model is opened before the command line is refused")


def assert_one_line(text, message):
    assert re.search(message, text), text
    assert "\n" not in text and "Traceback" not in text and len(text) < 600, text


def test_there_are_thirty_of_them_at_least():
    assert len({message for _, message in (*BEFORE_ANY_MODEL, *WHILE_OPENING)}) >= 30
