"""What each stage is told when nothing else is said."""

from __future__ import annotations

STAGE_DEFAULTS: dict[int, dict[str, object]] = {
    1: {
        "trainable_modules": "region_encoder",
        "global_batch_size": 4,
        "per_device_train_batch_size": 1,
        "num_train_epochs": 2,
        "learning_rate": 2e-5,
        "weight_decay": 0.01,
        "warmup_steps": 0.003,
        "lr_scheduler_type": "cosine",
        "logging_steps": 1,
        "save_steps": 1000,
        "save_total_limit": 2,
        "dataset_config": "gpt4roi/configs/stage1.py",
    },
    2: {
        "trainable_modules": "region_encoder,mm_projector,language_model",
        "global_batch_size": 16,
        "per_device_train_batch_size": 2,
        "num_train_epochs": 1,
        "learning_rate": 2e-5,
        "weight_decay": 0.0,
        "warmup_steps": 3000,
        "lr_scheduler_type": "cosine",
        "activation_checkpointing": True,
        "logging_steps": 1,
        "save_steps": 1000,
        "save_total_limit": 2,
        "dataset_config": "gpt4roi/configs/stage2.py",
    },
}
"""The original's hyper-parameters (its two training scripts); warmup_steps below 1 is a fraction of all steps."""
