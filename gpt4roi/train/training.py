"""One training from arguments to a folder: data, model, alignment, trainer."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser, set_seed

from gpt4roi.checkpoint.loading import build_from_parts, load_model, load_processor
from gpt4roi.datasets.collator import RegionCollator
from gpt4roi.datasets.encoded import EncodedDataset
from gpt4roi.datasets.mixture import Mixture
from gpt4roi.datasets.selection import build_mixture
from gpt4roi.errors import InputError
from gpt4roi.processor import GPT4RoIProcessor
from gpt4roi.train import run
from gpt4roi.train.alignment import AlignmentLoss, RegionTexts, align_regions
from gpt4roi.train.arguments import STAGE_DEFAULTS, DataArguments, ModelArguments, RegionArguments, TrainingArguments
from gpt4roi.train.checks import check_drops, check_first_batch
from gpt4roi.train.features import keep_features
from gpt4roi.train.trainable import parse_modules, parse_rates, set_trainable
from gpt4roi.train.trainer import GPT4RoITrainer

logger = logging.getLogger(__name__)

CALIBRATION_SAMPLES = 128


def main(argv: Sequence[str]) -> Path:
    """Trains as the arguments say, or goes on where a work directory stopped, and returns the work directory.

    argv: `--stage 1|2 --output_dir FOLDER` and any of the dataclasses in arguments.py; FOLDER alone resumes its run.
    Raises InputError for arguments that can't be carried out.
    """
    arguments = _remembered([part for word in argv for part in _apart(word)])
    model_args, data_args, region_args, args = parse(arguments)
    folder = Path(args.output_dir)
    if (folder / run.DONE).is_file():
        logger.info("%s is trained already: %s", folder, (folder / run.DONE).read_text())
        return folder
    set_seed(args.seed)
    mixture = build_mixture(data_args.dataset_config, args.seed)
    check_drops(mixture.parts, data_args.max_bad_fraction)
    checkpoint = run.last_checkpoint(folder)
    model, processor = open_model(checkpoint, model_args, args)
    features = None
    if data_args.picture_features:
        with args.main_process_first(desc="picture features"):
            features = keep_features(Path(data_args.picture_features), mixture, processor, model, bf16=args.bf16)
    texts = None
    if region_args.align_regions or region_args.align_weight:
        if features is None or model.config.region_encoder_type != "light":
            raise InputError(
                "--align_regions and --align_weight need --region_encoder_type light and --picture_features FOLDER"
            )
        with args.main_process_first(desc="region texts"):
            texts = _region_texts(folder, mixture, processor, model)
    dataset = EncodedDataset(mixture, processor, args.seed, features, texts.index if texts else None)
    alignment = AlignmentLoss(texts.targets) if texts else None
    _configure_regularisation(model, region_args)
    if checkpoint is None:
        if args.should_save:
            run.remember_arguments(folder, args.stage, arguments_to_remember(arguments))
        if not _is_ours(Path(model_args.model_name_or_path)):
            _calibrate(model, dataset)
        if region_args.align_regions:
            _align(model, alignment, dataset, region_args, args)
    logger.info("%s", set_trainable(model, learning_modules(model_args, args)))
    trainer = GPT4RoITrainer(
        model=model,
        args=args,
        train_dataset=dataset,
        data_collator=RegionCollator(processor.tokenizer.pad_token_id),
        processing_class=processor,
        rates=parse_rates(args.learning_rates),
        alignment=alignment,
        align_weight=region_args.align_weight,
        max_bad_fraction=data_args.max_bad_fraction,
    )
    check_first_batch(trainer.get_train_dataloader(), processor)
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_model(args.output_dir)
    if trainer.is_world_process_zero():
        facts = {"steps": trainer.state.global_step, "seconds": round(result.metrics["train_runtime"], 1)}
        run.write_whole(folder / run.DONE, json.dumps(facts))
    return folder


def parse(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, RegionArguments, TrainingArguments]:
    """Reads arguments over the defaults of their stage; raises InputError for unknown or impossible ones."""
    stage = _value(argv, "--stage") or "1"
    if stage not in ("1", "2"):
        raise InputError(f"--stage must be 1 or 2, got {stage!r}")
    if _value(argv, "--output_dir") is None and not {"-h", "--help"} & set(argv):
        raise InputError("--output_dir is missing: the folder that the training writes to and resumes from")
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, RegionArguments, TrainingArguments), prog="gpt4roi train", exit_on_error=False
    )
    accelerated = torch.cuda.is_available()
    parser.set_defaults(**STAGE_DEFAULTS[int(stage)], bf16=accelerated, use_cpu=not accelerated)
    try:
        *parts, unknown = parser.parse_args_into_dataclasses(list(argv), return_remaining_strings=True)
    except (argparse.ArgumentError, ValueError) as error:
        raise InputError(f"arguments: {error}") from None
    if unknown:
        raise InputError(f"unknown arguments: {' '.join(unknown)}; --help lists what there is")
    model_args, data_args, region_args, args = parts
    parse_modules(args.trainable_modules)
    parse_rates(args.learning_rates)
    args.label_names = ["labels"]
    if args.n_gpu > 1:
        raise InputError(
            f"{args.n_gpu} GPUs in one process: start one process for each, as train_stage{stage}.sh or torchrun does"
        )
    if args.global_batch_size:
        at_once = args.per_device_train_batch_size * args.world_size
        if args.global_batch_size % at_once:
            raise InputError(
                f"--global_batch_size {args.global_batch_size} is not a multiple of the {at_once} samples that "
                f"{args.world_size} processes take at once; change --per_device_train_batch_size"
            )
        args.gradient_accumulation_steps = args.global_batch_size // at_once
    return model_args, data_args, region_args, args


def open_model(
    checkpoint: Path | None, model_args: ModelArguments, args: TrainingArguments
) -> tuple[Any, GPT4RoIProcessor]:
    """Opens a checkpoint, a GPT4RoI folder, or builds a model from a language model and a vision tower."""
    source = checkpoint or Path(model_args.model_name_or_path)
    if _is_ours(source):
        chosen = {"dtype": torch.float32, "attn_implementation": model_args.attn_implementation}
        return load_model(str(source), **chosen), load_processor(str(source))
    if args.stage == 2:
        raise InputError(
            f"{source}: not a GPT4RoI folder; stage 2 starts from stage 1's: --model_name_or_path exp/stage1"
        )
    return build_from_parts(
        language_model=model_args.model_name_or_path,
        vision_tower=model_args.vision_tower,
        region_encoder_type=model_args.region_encoder_type,
        projector=model_args.pretrain_mm_mlp_adapter,
        prompt_format=model_args.prompt_format,
        system_prompt=model_args.system_prompt,
        model_max_length=model_args.model_max_length,
        image_grid_size=model_args.image_grid_size,
        mm_vision_select_layer=model_args.mm_vision_select_layer,
        mm_use_im_start_end=model_args.mm_use_im_start_end,
        attn_implementation=model_args.attn_implementation,
    )


def learning_modules(model_args: ModelArguments, args: TrainingArguments) -> tuple[str, ...]:
    """Returns which modules learn: those asked for, and the projector where the run started it untrained."""
    modules = parse_modules(args.trainable_modules)
    begun_here = not _is_ours(Path(model_args.model_name_or_path))
    if begun_here and model_args.pretrain_mm_mlp_adapter is None and "mm_projector" not in modules:
        logger.info("mm_projector started untrained (no --pretrain_mm_mlp_adapter), so it learns too")
        modules += ("mm_projector",)
    return modules


def _is_ours(folder: Path) -> bool:
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, json.JSONDecodeError):
        return False
    return kind in ("gpt4roi", "llava")


def _remembered(argv: list[str]) -> list[str]:
    """Returns the arguments of the run in --output_dir, where there is one and only the folder was given."""
    stage, folder = _value(argv, "--stage") or "1", _value(argv, "--output_dir")
    if folder is None or stage not in ("1", "2"):
        return argv
    given = arguments_to_remember(argv)
    return [
        "--stage", stage, "--output_dir", folder, *run.remembered_arguments(Path(folder), int(stage), given)
    ]  # fmt: skip


def arguments_to_remember(argv: Sequence[str]) -> list[str]:
    """Returns the arguments without the stage and the folder, which the work directory itself stands for."""
    kept, skip = [], False
    for word in argv:
        if skip:
            skip = False
        elif word in ("--stage", "--output_dir"):
            skip = True
        else:
            kept.append(word)
    return kept


def _apart(word: str) -> list[str]:
    """Returns `--some-flag=value` as `--some_flag` and `value`, and any other word as it is."""
    if not word.startswith("--"):
        return [word]
    flag, *value = word.split("=", 1)
    return ["--" + flag[2:].replace("-", "_"), *value]


def _value(argv: Sequence[str], flag: str) -> str | None:
    argv = list(argv)
    return argv[argv.index(flag) + 1] if flag in argv and argv.index(flag) + 1 < len(argv) else None


def _calibrate(model: Any, dataset: EncodedDataset) -> None:
    """Measures the tower's channels and the boxes for the modules that standardise them, on the first pictures."""
    if "light" not in (model.config.projector_type, model.config.region_encoder_type):
        return
    samples = [dataset[index] for index in range(min(CALIBRATION_SAMPLES, len(dataset)))]
    boxes = [sample["boxes"] for sample in samples if len(sample.get("boxes", ()))]
    if dataset.features is not None:
        maps = dataset.features.sample_maps(CALIBRATION_SAMPLES)
    else:
        pictures = [sample["pixel_values"] for sample in samples if "pixel_values" in sample]
        if not pictures:
            reasons = "; ".join(dict.fromkeys(sample["skipped"] for sample in samples if "skipped" in sample))
            raise InputError(f"none of the first {len(samples)} samples shows a picture to measure by: {reasons}")
        maps = model.encode_picture(torch.stack(pictures))[1]
    model.calibrate(maps, boxes)


def _configure_regularisation(model: Any, region_args: RegionArguments) -> None:
    """Sets what disturbs the light encoder while it trains; raises InputError for an encoder that knows none."""
    if not (region_args.region_mixup or region_args.region_noise):
        return
    if model.config.region_encoder_type != "light":
        raise InputError("--region_mixup and --region_noise are for --region_encoder_type light")
    model.region_encoder.mixup, model.region_encoder.noise = region_args.region_mixup, region_args.region_noise


def _region_texts(folder: Path, mixture: Mixture, processor: GPT4RoIProcessor, model: Any) -> RegionTexts:
    """Returns the texts that name regions; their targets are those that the run began with."""
    path = folder / "region_texts.safetensors"
    if path.is_file():
        return RegionTexts.load(path)
    texts = [text for index in range(len(mixture)) for text in mixture.region_texts(index).values()]
    if len(set(texts)) < 2:
        raise InputError("--align_regions needs questions about one region each, with answers; the data sets have none")
    made = RegionTexts.of(texts, processor.tokenizer, model.get_input_embeddings().weight.detach().cpu())
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(path)
    return made


def _align(
    model: Any, loss: AlignmentLoss, dataset: EncodedDataset, region_args: RegionArguments, args: TrainingArguments
) -> None:
    collate = RegionCollator(dataset.processor.tokenizer.pad_token_id)
    size = region_args.align_batch_size
    batches = [
        collate([dataset[index] for index in range(start, min(start + size, len(dataset)))])
        for start in range(0, len(dataset), size)
    ]
    generator = torch.Generator().manual_seed(args.seed)
    epochs, rate = region_args.align_regions, region_args.align_learning_rate
    align_regions(model, loss, [batch for batch in batches if "feature_maps" in batch], epochs, rate, generator)
