"""What a training assumes of a machine with GPUs; the GPUs are made up."""

from __future__ import annotations

import pytest
import torch
from accelerate.state import AcceleratorState

from gpt4roi.errors import InputError
from gpt4roi.models.compat import CHECKPOINTING
from gpt4roi.train.command_line import parse, parse_arguments
from gpt4roi.train.work_dir import is_on, parse_flags


@pytest.fixture
def a_gpu(monkeypatch):
    """A machine that says it has one GPU, which computes in bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (8, 0))
    has_bfloat16(monkeypatch, True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def has_bfloat16(monkeypatch, answer):
    """Lets the GPU say whether it computes in bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: answer)


def parsed(tmp_path, *more):
    """Returns the training's arguments from a command line."""
    return parse(["--stage", "1", "--output_dir", str(tmp_path), "--report_to", "none", *more])[-1]


@pytest.mark.parametrize("words", [["--use_cpu"], ["--use_cpu", "true"], ["--use_cpu", "1"]])
def test_a_training_sent_to_the_cpu_gets_no_defaults_of_a_gpu(a_gpu, tmp_path, words):
    args = parsed(tmp_path, *words)
    assert (args.use_cpu, args.bf16, args.dataloader_pin_memory, args.dataloader_num_workers) == (True, False, False, 0)
    assert args.device.type == "cpu"


@pytest.mark.parametrize("words", [[], ["--use_cpu", "false"], ["--use_cpu", "0"]])
def test_a_training_on_a_gpu_uses_it(a_gpu, tmp_path, words):
    args = parsed(tmp_path, *words)
    assert (args.use_cpu, args.bf16, args.dataloader_pin_memory) == (False, True, True)
    assert args.device.type == "cuda"


def test_a_switch_is_on_by_its_name_alone_and_the_last_word_wins():
    assert is_on(parse_flags(["--use_cpu", "--seed", "1"]), "use_cpu")
    assert is_on(parse_flags(["--use_cpu", "no", "--use_cpu", "Yes"]), "use_cpu")
    assert not is_on(parse_flags(["--use_cpu", "--use_cpu", "False"]), "use_cpu")
    assert not is_on({}, "use_cpu")


def test_fp16_alone_is_taken_where_bfloat16_is_the_default(a_gpu, tmp_path):
    args = parsed(tmp_path, "--fp16")
    assert (args.fp16, args.bf16) == (True, False)


def test_what_is_frozen_is_not_kept_in_other_16_bits_than_are_computed_in(a_gpu, tmp_path):
    with pytest.raises(
        InputError, match="--frozen_dtype float16 does not go with a training that computes in bfloat16"
    ):
        parsed(tmp_path, "--frozen_dtype", "float16")
    with pytest.raises(InputError, match=r"--frozen_dtype bfloat16 does not go .* float16; give --frozen_dtype float"):
        parsed(tmp_path, "--frozen_dtype", "bfloat16", "--fp16")
    assert not parsed(tmp_path, "--frozen_dtype", "float16", "--bf16", "false").bf16


def test_a_gpu_without_bfloat16_trains_in_float32_and_says_so(a_gpu, tmp_path, monkeypatch, caplog):
    has_bfloat16(monkeypatch, False)
    caplog.set_level("INFO")
    args = parsed(tmp_path)
    assert (args.fp16, args.bf16) == (False, False)
    assert "does not compute in bfloat16: training in float32; --fp16 is faster" in caplog.text


def test_where_a_precision_is_named_nothing_is_said_of_another(a_gpu, tmp_path, monkeypatch, caplog):
    has_bfloat16(monkeypatch, False)
    caplog.set_level("INFO")
    assert parsed(tmp_path, "--fp16", "true").fp16
    assert not parsed(tmp_path, "--bf16", "false").bf16
    assert "bfloat16" not in caplog.text


@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_checkpointing_is_switched_off_by_both_of_its_names(tmp_path, name):
    words = ["--stage", "2", "--output_dir", str(tmp_path), "--report_to", "none", "--use_cpu"]
    assert getattr(parse(words)[-1], CHECKPOINTING) is True
    flags = parse_flags([*words, f"--{name}", "false"])
    assert getattr(parse_arguments(flags)[-1], CHECKPOINTING) is False
    assert "activation_checkpointing" in flags


def test_a_package_that_answers_but_is_too_old_to_train_is_one_line(tmp_path, monkeypatch):
    about = tmp_path / "transformers-5.16.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 5.16.1\n")
    monkeypatch.syspath_prepend(tmp_path)  # where the versions of installed packages are looked up first
    with pytest.raises(InputError, match=r"needs transformers<6,>=5\.20, and 5\.16\.1 is installed; pip install 'gpt4"):
        parsed(tmp_path / "out")
