"""Training run: from a command line to a trained folder, as a list of named steps."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from gpt4roi.data.mixture import Mixture
from gpt4roi.data.registry import build_mixture
from gpt4roi.data.training_dataset import EncodedDataset
from gpt4roi.distributed import main_process_first
from gpt4roi.errors import InputError
from gpt4roi.io.atomic import atomic_write_text
from gpt4roi.io.model_folders import is_gpt4roi_folder
from gpt4roi.models.light_encoder import LightRegionEncoder
from gpt4roi.processing.batch import OF_SAMPLE, RegionCollator
from gpt4roi.processing.processor import GPT4RoIProcessor
from gpt4roi.train import saving, sharding, work_dir
from gpt4roi.train.adapters import add_adapters, cast_frozen_parameters, fully_trained
from gpt4roi.train.alignment import AlignmentLoss, align_once, alignment_loss, load_region_texts
from gpt4roi.train.build_model import check_choices, open_model, trainable_modules
from gpt4roi.train.command_line import Arguments, parse_arguments, resumed, run_flags
from gpt4roi.train.estimate import estimate_from_flags
from gpt4roi.train.feature_cache import FeatureCache, cache_features
from gpt4roi.train.param_groups import parse_rates, set_trainable, trainable_table
from gpt4roi.train.resume import check_position
from gpt4roi.train.sanity_checks import check_drops, check_first_batch, check_fit, count_faults
from gpt4roi.train.trainer import GPT4RoITrainer
from gpt4roi.train.watch import WatchRegions, choose
from gpt4roi.train.work_dir import Flags, parse_flags, switch

logger = logging.getLogger(__name__)

CALIBRATION_SAMPLES = 128


def main(argv: Sequence[str]) -> Path:
    """Trains as the arguments say, or resumes the run of a work directory, and returns the work directory.

    Args:
        argv: `--stage 1|2 --output_dir FOLDER` and any of the dataclasses in arguments.py; FOLDER alone resumes its
            run; with `--estimate` nothing is trained, and the memory it would take is logged.

    Raises:
        InputError: The arguments cannot be carried out.
    """
    given = parse_flags(argv)
    estimate = switch(given, "estimate")
    if estimate:
        logger.info("%s", estimate_from_flags(given))
        return Path()
    if estimate is False:
        given.pop("estimate", None)
    flags = resumed(given)
    arguments = parse_arguments(flags)
    run = TrainingRun(flags, arguments)
    if (run.folder / work_dir.DONE).is_file():
        logger.info("%s is trained already: %s", run.folder, (run.folder / work_dir.DONE).read_text())
        return run.folder
    check_choices(arguments)
    with work_dir.lock(run.folder, needed=run.args.should_save):
        run.load_data()
        run.find_checkpoint()
        run.load_model()
        run.cache_features()
        run.build_dataset()
        run.initialize_region_encoder()
        run.freeze_parameters()
        run.build_trainer()
        run.check_start()
        run.record_start()
        run.train()
        run.save_model()
    return run.folder


class TrainingRun:
    """One training; `main` calls its steps, each of which needs those before it.

    Args:
        flags: The command line, for the work directory to remember.
        arguments: What it says.
    """

    mixture: Mixture
    eval_mixture: Mixture | None = None
    checkpoint: Path | None
    model: Any
    processor: GPT4RoIProcessor
    features: FeatureCache | None = None
    dataset: EncodedDataset
    alignment: AlignmentLoss | None = None
    trainer: GPT4RoITrainer
    seconds: float

    def __init__(self, flags: Flags, arguments: Arguments) -> None:
        self.flags = run_flags(flags)
        self.arguments = arguments
        self.model_args, self.data_args, self.region_args, self.args = arguments
        self.folder = Path(str(self.args.output_dir))

    def load_data(self) -> None:
        """Opens the training and evaluation data, and refuses data of which too much is unusable."""
        set_seed(self.args.seed)
        self.mixture = build_mixture(self.data_args.dataset_config, self.args.seed)
        if self.data_args.eval_dataset:
            self.eval_mixture = build_mixture(self.data_args.eval_dataset, self.args.seed)
        check_drops(self.mixture.parts, self.data_args.max_bad_fraction)
        for part in self.eval_mixture.parts if self.eval_mixture else ():
            check_drops([part], self.data_args.max_bad_fraction)

    def find_checkpoint(self) -> None:
        """Finds the checkpoint to resume from, and records a new run before hours of encoding images may follow."""
        if self.args.should_save:
            saving.clear_leftovers(self.folder)
        self.checkpoint = saving.last_checkpoint(self.folder)
        if self.args.should_save and self.checkpoint is None:
            work_dir.record_flags(self.folder, self.args.stage, self.flags, begun=False)
        # A resumed run was evaluated when it began.
        self.args.eval_on_start = self.args.eval_on_start and self.checkpoint is None

    def load_model(self) -> None:
        """Opens or builds the model and its processor, the tower in the dtype that a checkpoint holds it in."""
        with sharding.unsharded_while_opening(self.args):
            self.model, self.processor = open_model(self.checkpoint, self.model_args, self.args)
        check_fit(self.processor, self.model)
        if not hasattr(self.model, "region_config"):  # a base's tower is frozen with the rest of the base
            cast_frozen_parameters(self.model.vision_tower, self.model_args.frozen_dtype)

    def cache_features(self) -> None:
        """Encodes every image once, in the first process, where a feature cache is asked for."""
        if self.data_args.feature_cache:
            folder = Path(self.data_args.feature_cache)
            with main_process_first("the images are encoded"):
                self.features = cache_features(
                    folder, self.mixture, self.processor, self.model, bf16=self.args.bf16, device=self.args.device
                )

    def build_dataset(self) -> None:
        """Makes the encoded training data, and the alignment loss where it is asked for."""
        texts, config = None, self.model.config
        aligned = bool(self.region_args.align_regions or self.region_args.align_weight)
        if aligned and (self.features is None or config.region_encoder_type != "light"):
            raise InputError(
                "--align_regions and --align_weight need --region_encoder_type light and --feature_cache FOLDER"
            )
        adapted = bool(self.model_args.lora_r)
        if aligned and adapted and getattr(config, "class_names", None) is not None:
            raise InputError(
                "--align_regions and --align_weight add texts to a model with class_names, and an adapter (--lora_r) "
                "has no place for them; leave out one of the two"
            )
        # An encoder that compares regions with texts shall know those of this training too.
        if aligned or (getattr(config, "region_texts", None) and not adapted):
            with main_process_first("the texts that name regions are read"):
                path = work_dir.region_texts_file(self.folder)
                texts = load_region_texts(path, self.mixture, self.processor.tokenizer, self.model)
        index = texts.index if texts and aligned else None
        self.dataset = EncodedDataset(self.mixture, self.processor, self.args.seed, self.features, index)
        if texts is not None:
            weights = self.region_args.align_head_weight, self.region_args.align_outlier_weight
            loss = alignment_loss(self.model, texts, self.processor.tokenizer, *weights)
            self.alignment = loss if aligned else None

    def initialize_region_encoder(self) -> None:
        """Sets the regularisation; calibrates and aligns the region encoder of a run that begins."""
        set_regularisation(self.model, self.region_args.region_mixup, self.region_args.region_noise)
        if self.checkpoint is not None:
            return
        if not is_gpt4roi_folder(Path(self.model_args.model_name_or_path)):
            calibrate(self.model, self.dataset)
        if self.alignment is not None and self.region_args.align_regions:
            align_once(self.model, self.alignment, self.dataset, self.region_args, self.args.device, self.args.seed)

    def freeze_parameters(self) -> None:
        """Freezes what is not trained, casts it, and adds the adapters."""
        modules = trainable_modules(self.model_args, self.args)
        set_trainable(self.model, fully_trained(modules, self.model_args))
        cast_frozen_parameters(self.model, self.model_args.frozen_dtype)
        if self.model_args.lora_r:
            self.model = add_adapters(self.model, self.model_args, modules)

    def build_trainer(self) -> None:
        """Makes the trainer, with its sharding and the page of watched regions."""
        args, processor = self.args, self.processor
        rates = parse_rates(args.learning_rates)
        decays = parse_rates(args.weight_decays, "--weight_decays")
        logger.info("%s", trainable_table(self.model, args.learning_rate, args.weight_decay, rates, decays))
        plan = sharding.configure(args, self.model, aligned=bool(self.region_args.align_weight))
        evaluated = self.eval_mixture and EncodedDataset(self.eval_mixture, processor, args.seed)
        self.trainer = GPT4RoITrainer(
            model=self.model,
            args=args,
            train_dataset=self.dataset,
            eval_dataset=evaluated,
            data_collator=RegionCollator(processor.tokenizer.pad_token_id),
            processing_class=processor,
            rates=rates,
            decays=decays,
            alignment=self.alignment,
            align_weight=self.region_args.align_weight,
            max_bad_fraction=self.data_args.max_bad_fraction,
            faults=count_faults(self.mixture.parts),
        )
        if plan is not None:
            self.trainer.add_callback(sharding.StopUnlessSharded(plan, self.trainer))
        if self.eval_mixture:
            watched = choose(self.eval_mixture, args.seed, self.data_args.watch_regions)
            self.trainer.add_callback(WatchRegions(watched, processor, self.trainer))

    def check_start(self) -> None:
        """Compares the data with a checkpoint's and loads its counts, or checks the first batch of a new run."""
        if self.checkpoint is not None:
            check_position(self.checkpoint, self.trainer.data, self.trainer.step_size)
            self.trainer.load_own_state(self.checkpoint)
        else:
            check_first_batch(self.trainer.get_train_dataloader(), self.processor)

    def record_start(self) -> None:
        """Records that a new run has begun to train, and all of its settings."""
        if self.args.should_save and self.checkpoint is None:
            work_dir.record_flags(self.folder, self.args.stage, self.flags)
            parts = [vars(part) for part in self.arguments[:-1]]
            work_dir.write_settings(self.folder, [*parts, self.args.to_dict()], self.args.world_size)

    def train(self) -> None:
        """Trains to the end."""
        result = self.trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        self.seconds = result.metrics["train_runtime"]

    def save_model(self) -> None:
        """Writes the trained model, and then the mark that the training is finished."""
        self.trainer.save_final_model()
        if self.trainer.is_world_process_zero():
            facts = {"steps": self.trainer.state.global_step, "seconds": round(self.seconds, 1)}
            atomic_write_text(self.folder / work_dir.DONE, json.dumps(facts))


def calibrate(model: Any, dataset: EncodedDataset) -> None:
    """Measures the tower's channels and the boxes for the modules that standardise them, on the first images."""
    of_base = hasattr(model, "region_config")
    if not of_base and "light" not in (model.config.projector_type, model.config.region_encoder_type):
        return
    samples = [dataset[index] for index in range(min(CALIBRATION_SAMPLES, len(dataset)))]
    boxes = [sample["boxes"] for sample in samples if len(sample.get("boxes", ()))]
    if isinstance(dataset.features, FeatureCache):
        maps = dataset.features.sample_maps(CALIBRATION_SAMPLES)
    else:
        images = [
            {name: value for name, value in sample.items() if name not in OF_SAMPLE}
            for sample in samples
            if "pixel_values" in sample
        ]
        if not images:
            reasons = list(dict.fromkeys(sample.get("skipped", "it is text alone") for sample in samples))
            raise InputError(
                f"none of the first {len(samples)} samples shows an image to measure by: {'; '.join(reasons[:2])}"
            )
        with torch.no_grad():
            if of_base:
                maps = [views for _, (views,) in model.encode_prepared(images)]
            else:
                maps = model.encode_image(torch.stack([image["pixel_values"] for image in images]))[1]
    model.calibrate(maps, boxes)


def set_regularisation(model: Any, mixup: float, noise: float) -> None:
    """Sets the light encoder's regularisation; raises InputError for an encoder that has none."""
    if not (mixup or noise):
        return
    if not isinstance(model.region_encoder, LightRegionEncoder):
        raise InputError("--region_mixup and --region_noise are for --region_encoder_type light")
    model.region_encoder.set_regularisation(noise=noise, mixup=mixup)
