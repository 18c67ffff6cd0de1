"""One tiny trained model in every form that people have its weights in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from tiny import tiny_config, tiny_processor, tiny_text_config, tiny_tokenizer
from transformers import AutoModelForCausalLM, CLIPVisionConfig

from gpt4roi.checkpoint.adapter import merge_adapter
from gpt4roi.checkpoint.convert import plan_convert
from gpt4roi.checkpoint.delta import plan_apply, plan_make
from gpt4roi.checkpoint.export import export_folder
from gpt4roi.checkpoint.loading import load_model, load_processor, with_settings
from gpt4roi.checkpoint.lora import record_base
from gpt4roi.models import GPT4RoIForConditionalGeneration

ORIGINAL_SIZES = {
    "num_region_levels": 4,
    "region_level_stride": 3,
    "num_fusion_rounds": 1,
    "fusion_groups": 64,
}
"""What the original's code has built in, and a single round of fusion."""

BITSANDBYTES = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def original_config(**changes: object):
    """Returns the configuration of a tiny model that the original's format has a form for."""
    tower = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=12,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        initializer_range=0.3,
    )
    return tiny_config(vision_config=tower, mm_vision_tower="clip", **ORIGINAL_SIZES, **changes)


def save_chat_model(folder: Path, seed: int = 0, **changes: object) -> Path:
    """Writes a folder of ours with a chat model whose prompts differ from v0 in everything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT4RoIForConditionalGeneration(original_config(**changes)).eval()
        for weight in model.region_encoder.parameters():
            weight.data.mul_(8 if weight.ndim > 1 else 1)
    for weight in model.vision_tower.parameters():
        weight.data = weight.data.half().float()
    model.save_pretrained(folder)
    processor = with_settings(tiny_processor(model.config), system_prompt="Be brief.", model_max_length=512)
    processor.save_pretrained(folder)
    return folder


def save_base(folder: Path, **changes: object) -> Path:
    """Writes the language model alone that such a model may have been trained from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        tokenizer = tiny_tokenizer(with_region_tokens=False)
        config = tiny_text_config(**{"vocab_size": len(tokenizer), **changes})
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_every_form(place: Path) -> dict[str, Path]:
    """Writes the chat model in every form; `adapter`, and `merged` with its base, are of one that was trained on."""
    import peft

    made = {"ours": save_chat_model(place / "ours"), "base": save_base(place / "base")}
    plan_convert(made["ours"], place / "original", "original").write()
    plan_make(made["base"], made["ours"], place / "delta").write()
    tower = str(place / "original/clip")
    plan_apply(made["base"], place / "delta", place / "delta result", vision_tower=tower).write()
    plan_apply(made["base"], place / "delta", place / "delta result, original", "original").write()
    shutil.copytree(tower, place / "delta result, original/clip")
    adapted = peft.get_peft_model(
        load_model(made["ours"]),
        peft.LoraConfig(r=2, target_modules=r"language_model\..*\.(q|v)_proj", init_lora_weights=False),
    )
    adapted.save_pretrained(place / "adapter")
    load_processor(made["ours"]).save_pretrained(place / "adapter")
    record_base(place / "adapter", made["ours"])
    merge_adapter(made["ours"], place / "adapter", place / "merged")
    shutil.copytree(made["ours"], place / "work/checkpoint-4")
    for name in ("work/run.json", "work/checkpoint-4/trainer_state.json"):
        (place / name).write_text("{}")
    shutil.copytree(made["ours"], place / "quantized")
    mark_as_quantized(place / "quantized")
    export_folder(place / "work/checkpoint-4", place / "exported")
    names = (
        "original",
        "delta",
        "delta result",
        "delta result, original",
        "adapter",
        "merged",
        "quantized",
        "exported",
    )
    return made | {name: place / name for name in names} | {"checkpoint": place / "work/checkpoint-4"}


def mark_as_quantized(folder: Path, stored: dict | None = None) -> Path:
    """Says in a folder's config.json that its weights are stored quantized."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": stored or BITSANDBYTES}))
    return folder
