"""One training from arguments to a folder: data, model, alignment, trainer."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from gpt4roi.data.collator import RegionCollator
from gpt4roi.data.mixture import Mixture
from gpt4roi.data.registry import build_mixture
from gpt4roi.data.training_dataset import EncodedDataset
from gpt4roi.devices import moved_to
from gpt4roi.distributed import broadcast_parameters, main_process_first
from gpt4roi.errors import InputError
from gpt4roi.io.atomic import atomic_write_text
from gpt4roi.processing.processor import GPT4RoIProcessor
from gpt4roi.train import saving, sharding, work_dir
from gpt4roi.train.adapters import add_adapters, keep_frozen
from gpt4roi.train.alignment import AlignmentLoss, RegionTexts, align_regions
from gpt4roi.train.arguments import DataArguments, ModelArguments, RegionArguments, TrainingArguments
from gpt4roi.train.build_model import check_choices, is_ours, learning_modules, open_model
from gpt4roi.train.command_line import arguments_to_remember, parse, remembered, without_estimate
from gpt4roi.train.estimate import estimated
from gpt4roi.train.feature_cache import keep_features
from gpt4roi.train.resume import check_position, describe_data
from gpt4roi.train.sanity_checks import check_drops, check_first_batch, check_fit
from gpt4roi.train.trainable import learning_table, parse_rates, set_trainable
from gpt4roi.train.trainer import GPT4RoITrainer
from gpt4roi.train.watch import WatchRegions, choose

logger = logging.getLogger(__name__)

CALIBRATION_SAMPLES = 128


def main(argv: Sequence[str]) -> Path:
    """Trains as the arguments say, or goes on where a work directory stopped, and returns the work directory.

    argv: `--stage 1|2 --output_dir FOLDER` and any of the dataclasses in arguments.py; FOLDER alone resumes its run;
    with `--estimate` nothing is trained, and the memory it would take is logged.
    Raises InputError for arguments that can't be carried out.
    """
    if work_dir.is_on(work_dir.options(work_dir.words(argv)), "estimate"):
        logger.info("%s", estimated(argv))
        return Path()
    arguments = remembered(without_estimate(argv))
    model_args, data_args, region_args, args = parse(arguments)
    folder = Path(args.output_dir)
    if (folder / work_dir.DONE).is_file():
        logger.info("%s is trained already: %s", folder, (folder / work_dir.DONE).read_text())
        return folder
    check_choices(model_args, region_args, args)
    with work_dir.held(folder, needed=args.should_save):
        return _train(folder, arguments, model_args, data_args, region_args, args)


def _train(
    folder: Path,
    arguments: list[str],
    model_args: ModelArguments,
    data_args: DataArguments,
    region_args: RegionArguments,
    args: TrainingArguments,
) -> Path:
    set_seed(args.seed)
    mixture = build_mixture(data_args.dataset_config, args.seed)
    held_out = build_mixture(data_args.eval_dataset, args.seed) if data_args.eval_dataset else None
    check_drops([*mixture.parts, *(held_out.parts if held_out else ())], data_args.max_bad_fraction)
    if args.should_save:
        saving.clear_leftovers(folder)
    checkpoint = saving.last_checkpoint(folder)
    if args.should_save and checkpoint is None:  # before the first step may lie hours of looking at images
        work_dir.remember_arguments(folder, args.stage, arguments_to_remember(arguments), begun=False)
    args.eval_on_start = args.eval_on_start and checkpoint is None  # else it was done when the run began
    with sharding.whole_while_opening(args):
        model, processor = open_model(checkpoint, model_args, args)
    check_fit(processor, model)
    keep_frozen(model.vision_tower, model_args.frozen_dtype)  # as a checkpoint holds it, before images are looked at
    features = None
    if data_args.picture_features:
        kept = Path(data_args.picture_features)
        with main_process_first("the images are looked at"):
            features = keep_features(kept, mixture, processor, model, bf16=args.bf16, device=args.device)
    texts = None
    if region_args.align_regions or region_args.align_weight:
        if features is None or model.config.region_encoder_type != "light":
            raise InputError(
                "--align_regions and --align_weight need --region_encoder_type light and --picture_features FOLDER"
            )
        with main_process_first("the texts that name regions are read"):
            texts = _region_texts(folder, mixture, processor, model)
    dataset = EncodedDataset(mixture, processor, args.seed, features, texts.index if texts else None)
    alignment = AlignmentLoss(texts.targets) if texts else None
    _configure_regularisation(model, region_args)
    if checkpoint is None:
        if not is_ours(Path(model_args.model_name_or_path)):
            _calibrate(model, dataset)
        if region_args.align_regions:
            _align(model, alignment, dataset, region_args, args)
    modules = learning_modules(model_args, args)
    set_trainable(model, [name for name in modules if name != "language_model" or not model_args.lora_r])
    keep_frozen(model, model_args.frozen_dtype)
    if model_args.lora_r:
        model = add_adapters(model, model_args, modules)
    rates = parse_rates(args.learning_rates)
    decays = parse_rates(args.weight_decays, "--weight_decays")
    logger.info("%s", learning_table(model, args.learning_rate, args.weight_decay, rates, decays))
    plan = sharding.configure(args, model, aligned=bool(region_args.align_weight))
    trainer = GPT4RoITrainer(
        model=model,
        args=args,
        train_dataset=dataset,
        eval_dataset=held_out and EncodedDataset(held_out, processor, args.seed),
        data_collator=RegionCollator(processor.tokenizer.pad_token_id),
        processing_class=processor,
        rates=rates,
        decays=decays,
        alignment=alignment,
        align_weight=region_args.align_weight,
        max_bad_fraction=data_args.max_bad_fraction,
    )
    if plan is not None:
        trainer.add_callback(sharding.StopUnlessSharded(plan, trainer))
    if held_out:
        trainer.add_callback(WatchRegions(choose(held_out, args.seed, data_args.watch_regions), processor, trainer))
    trainer.data = describe_data(dataset)
    if checkpoint is not None:
        check_position(checkpoint, trainer.data, trainer.step_size)
        trainer.read_own_state(checkpoint)
    else:
        check_first_batch(trainer.get_train_dataloader(), processor)
    if args.should_save and checkpoint is None:
        work_dir.remember_arguments(folder, args.stage, arguments_to_remember(arguments))
        work_dir.write_settings(
            folder, [vars(model_args), vars(data_args), vars(region_args), args.to_dict()], args.world_size
        )
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_whole()
    if trainer.is_world_process_zero():
        facts = {"steps": trainer.state.global_step, "seconds": round(result.metrics["train_runtime"], 1)}
        atomic_write_text(folder / work_dir.DONE, json.dumps(facts))
    return folder


def _calibrate(model: Any, dataset: EncodedDataset) -> None:
    """Measures the tower's channels and the boxes for the modules that standardise them, on the first images."""
    if "light" not in (model.config.projector_type, model.config.region_encoder_type):
        return
    samples = [dataset[index] for index in range(min(CALIBRATION_SAMPLES, len(dataset)))]
    boxes = [sample["boxes"] for sample in samples if len(sample.get("boxes", ()))]
    if dataset.features is not None:
        maps = dataset.features.sample_maps(CALIBRATION_SAMPLES)
    else:
        images = [sample["pixel_values"] for sample in samples if "pixel_values" in sample]
        if not images:
            reasons = list(dict.fromkeys(sample.get("skipped", "it is text alone") for sample in samples))
            raise InputError(
                f"none of the first {len(samples)} samples shows an image to measure by: {'; '.join(reasons[:2])}"
            )
        maps = model.encode_image(torch.stack(images))[1]
    model.calibrate(maps, boxes)


def _configure_regularisation(model: Any, region_args: RegionArguments) -> None:
    """Sets what disturbs the light encoder while it trains; raises InputError for an encoder that knows none."""
    if not (region_args.region_mixup or region_args.region_noise):
        return
    if model.config.region_encoder_type != "light":
        raise InputError("--region_mixup and --region_noise are for --region_encoder_type light")
    model.region_encoder.set_regularisation(noise=region_args.region_noise, mixup=region_args.region_mixup)


def _region_texts(folder: Path, mixture: Mixture, processor: GPT4RoIProcessor, model: Any) -> RegionTexts:
    """Returns the texts that name regions; their targets are those that the run began with."""
    path = folder / work_dir.REGION_TEXTS
    if path.is_file():
        return RegionTexts.load(path)
    texts = [text for index in range(len(mixture)) for text in mixture.region_texts(index).values()]
    if len(set(texts)) < 2:
        raise InputError("--align_regions needs questions about one region each, with answers; the data sets have none")
    made = RegionTexts.of(texts, processor.tokenizer, model.get_input_embeddings().weight.detach().cpu())
    made.save(path)
    return made


def _align(
    model: Any, loss: AlignmentLoss, dataset: EncodedDataset, region_args: RegionArguments, args: TrainingArguments
) -> None:
    """Aligns the region encoder in the first process, and gives it to the others, equal to the bit."""
    encoder = model.region_encoder
    with moved_to(args.device, encoder):
        with main_process_first("the regions are aligned with words") as first:
            if first:
                epochs, rate = region_args.align_regions, region_args.align_learning_rate
                batches = _batches_to_align(dataset, region_args.align_batch_size)
                generator = torch.Generator().manual_seed(args.seed)
                align_regions(model, loss.to(args.device), batches, epochs, rate, generator)
        broadcast_parameters([*encoder.parameters(), *encoder.buffers()], args.device)


def _batches_to_align(dataset: EncodedDataset, size: int) -> list[dict[str, Any]]:
    collate = RegionCollator(dataset.processor.tokenizer.pad_token_id)
    starts = range(0, len(dataset), size)
    batches = [collate([dataset[index] for index in range(s, min(s + size, len(dataset)))]) for s in starts]
    return [batch for batch in batches if "feature_maps" in batch]
