"""What a training can be told."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments as HFTrainingArguments


@dataclass
class AdapterArguments:
    """How the language model learns by low-rank adapters instead of in its own weights."""

    lora_r: int = field(default=0, metadata={"help": "rank of the language model's adapters; 0: it learns itself"})
    lora_alpha: float | None = field(default=None, metadata={"help": "scale of the adapters (twice the rank)"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout before the adapters"})
    lora_target_modules: str | None = field(
        default=None, metadata={"help": "layers that get one, as q_proj,v_proj (all linear layers of the decoder)"}
    )
    quantization: str | None = field(
        default=None, metadata={"help": "4bit or 8bit: keeps the language model so, under adapters (QLoRA)"}
    )
    frozen_dtype: str = field(
        default="float32", metadata={"help": "float32, bfloat16 or float16: how modules that do not learn are kept"}
    )


@dataclass
class ModelArguments(AdapterArguments):
    """Which parts the model is made of; a GPT4RoI folder needs no tower."""

    model_name_or_path: str = field(
        default="./vicuna-7b", metadata={"help": "a language model's folder, or a GPT4RoI folder to start from"}
    )
    vision_tower: str = field(
        default="openai/clip-vit-large-patch14", metadata={"help": "folder or name of the frozen vision tower"}
    )
    pretrain_mm_mlp_adapter: str | None = field(default=None, metadata={"help": "a LLaVA mm_projector file"})
    mm_vision_select_layer: int = field(default=-2, metadata={"help": "hidden state the image tokens come from"})
    mm_use_im_start_end: bool = field(default=True, metadata={"help": "put <im_start> and <im_end> around the image"})
    model_max_length: int | None = field(
        default=None,
        metadata={"help": "longest sequence; whole turns are dropped beyond (2048, or as the GPT4RoI folder says)"},
    )
    prompt_format: str | None = field(
        default=None,
        metadata={"help": "v0, v1, or chat: the tokenizer's own template (v0, or as the GPT4RoI folder says)"},
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "chat: what stands before the dialogue, instead of the template's own words"}
    )
    region_encoder_type: str = field(default="gpt4roi", metadata={"help": "gpt4roi, or light for timm pyramids"})
    image_grid_size: int | None = field(
        default=None, metadata={"help": "light: image tokens per side, by pooling the last map"}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "eager, sdpa or flash_attention_2"})


@dataclass
class DataArguments:
    """What is learnt from."""

    dataset_config: str = field(
        default="gpt4roi/configs/dataset_config.json", metadata={"help": "list of data sets, or a unified file"}
    )
    eval_dataset: str | None = field(
        default=None,
        metadata={"help": "what is held out: list of data sets, or a unified file; looked at every --eval_steps"},
    )
    watch_regions: int = field(
        default=6, metadata={"help": "questions of --eval_dataset whose answers are written to watch.html"}
    )
    picture_features: str | None = field(
        default=None,
        metadata={"help": "folder to keep the frozen tower's outputs in, so that each image is looked at once"},
    )
    max_bad_fraction: float = field(default=0.01, metadata={"help": "stop when more samples than this are unusable"})


@dataclass
class RegionArguments:
    """What is ours, not the original's: off unless asked for."""

    align_regions: int = field(
        default=0, metadata={"help": "epochs of aligning region embeddings with words before training; 0: none"}
    )
    align_learning_rate: float = field(default=2e-3, metadata={"help": "peak learning rate of the alignment"})
    align_batch_size: int = field(default=16, metadata={"help": "images in a step of the alignment"})
    align_weight: float = field(default=0.0, metadata={"help": "weight of the alignment loss kept during training"})
    region_mixup: float = field(
        default=0.0, metadata={"help": "light: largest share of another region's features mixed in while training"}
    )
    region_noise: float = field(
        default=0.0, metadata={"help": "light: channel noise while training, in standard deviations"}
    )


@dataclass
class TrainingArguments(HFTrainingArguments):
    """The Trainer's own arguments, with what is particular to the stages."""

    stage: int = field(default=1, metadata={"help": "1: region encoder; 2: everything but the vision tower"})
    trainable_modules: str | None = field(
        default=None, metadata={"help": "comma-separated: region_encoder, mm_projector, language_model"}
    )
    learning_rates: str | None = field(
        default=None, metadata={"help": "learning rates that differ, as region_encoder=5e-4,mm_projector=5e-4"}
    )
    weight_decays: str | None = field(
        default=None, metadata={"help": "weight decays that differ, as region_encoder=0.01,language_model=0"}
    )
    max_bad_steps: int = field(
        default=3, metadata={"help": "steps of non-finite loss or gradients that are left out before the run stops"}
    )
    global_batch_size: int | None = field(
        default=None, metadata={"help": "samples a step over all devices; kept by accumulation"}
    )
    estimate: bool = field(
        default=False, metadata={"help": "print the memory that this training takes on each GPU, and end"}
    )
    estimate_gpus: int | None = field(default=None, metadata={"help": "GPUs to estimate for (those of this machine)"})
    estimate_tokens: int | None = field(
        default=None, metadata={"help": "tokens of a sample to estimate for (--model_max_length)"}
    )
    estimate_regions: int = field(default=8, metadata={"help": "regions of a sample to estimate for"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "kept off: the model reads every column"})
