"""Two processes: sharded as planned, equal to one process, interrupted and gone on with; by torch's gloo on the CPU."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy

SCRIPT = Path(__file__).with_name("ranks.py")


def together(folder, *names):
    """Runs scenarios of ranks.py and returns what they found."""
    command = [sys.executable, str(SCRIPT), *names, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return together(tmp_path_factory.mktemp("ranks"), "ddp", "losing", "first", "shards", "base")


@pytest.fixture(scope="module")
def shards(found):
    return found["shards"]


@pytest.fixture(scope="module")
def ddp(found):
    return found["ddp"]


def learnt(samples):
    """Returns the samples of the steps: what one process read after the calibration and the look at the first batch."""
    return samples[-(len(samples) - 11 - 2) :]


def test_the_units_are_the_decoder_layers_and_the_region_encoder(shards):
    for rank in shards["two"]:
        assert rank["units"] == ["language_model.model.layers.0", "language_model.model.layers.1", "region_encoder"]


def test_each_of_two_processes_holds_half_of_all_but_the_tower(shards):
    for rank in shards["two"]:
        tower = rank["bytes_tower_whole"]
        assert rank["bytes_tower"] == tower
        assert rank["bytes_here"] == tower + (rank["bytes_whole"] - tower) / 2


def test_sharding_that_did_not_happen_is_refused_and_names_what_is_whole(shards):
    for rank in shards["two"]:
        assert rank["unsharded_before"] == rank["units"]
        assert (
            "FSDP 2 was asked for, but 3 of 3 modules are not sharded (language_model.model.layers.0" in rank["refusal"]
        )


def test_sharded_processes_have_the_losses_of_one_process(shards):
    for rank in shards["two"]:
        assert rank["losses"] == pytest.approx(shards["alone"], rel=1e-6)
    assert shards["alone"][-1] < 0.9 * shards["alone"][0]


def test_a_sharded_checkpoint_goes_on_equal_to_the_bit(shards):
    for rank in shards["two"]:
        assert rank["losses_resumed"] == rank["losses"][2:]


def test_a_full_state_dict_opens_in_one_process_with_the_weights_of_one_process(shards):
    assert [rank["full_tensors"] for rank in shards["two"]] == [125, 0]
    assert shards["largest_difference"] < 1e-6


def test_frozen_modules_are_sharded_beside_one_that_learns(shards):
    for rank in shards["two"]:
        assert rank["losses_frozen"][0] == pytest.approx(shards["alone"][0], rel=1e-6)
        assert rank["losses_frozen"][1] < rank["losses_frozen"][0]


def test_an_evaluation_goes_on_where_one_process_holds_text_alone(shards):
    for rank in shards["two"]:
        assert rank["evaluated"]["sharded"] == pytest.approx(rank["evaluated"]["whole"], rel=1e-5)


def test_accelerate_shards_what_the_plan_says_with_the_arguments_that_the_trainer_gets(shards):
    for rank in shards["two"]:
        assert rank["accelerate"]["unsharded"] == []
        assert rank["accelerate"]["bytes_here"] == rank["bytes_here"]
        assert rank["accelerate"]["bytes_tower"] == rank["bytes_tower_whole"]


def test_fsdp_1_wraps_the_same_units_and_has_the_same_losses(shards):
    for rank in shards["two"]:
        assert rank["fsdp1"]["unsharded"] == []
        assert rank["fsdp1"]["losses"] == pytest.approx(shards["alone"][:2], rel=1e-5)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", ["clip", "pyramid"])
def test_boxes_and_loss_are_not_rounded_where_fsdp_trains_in_sixteen_bits(shards, kind, version):
    for rank in shards["two"]:
        half = rank["half"][f"{kind} {version}"]
        assert half["weights"] == "torch.bfloat16"
        assert half["boxes"] == half["given"]
        assert half["buffers"] == ([] if kind == "clip" else ["torch.float32"])
        assert half["loss"] == "torch.float32"
        assert half["losses"][-1] < half["losses"][0]


def test_two_processes_interrupted_go_on_equal_to_the_bit_with_the_noise_of_each(ddp):
    assert len(ddp["whole"][0]["losses"]) == 6
    for whole, again in zip(ddp["whole"], ddp["again"], strict=True):
        assert again["losses"] == whole["losses"]
        assert again["read"] == whole["read"][-len(again["read"]) :]
        assert len(again["read"]) == 4


def test_two_processes_read_the_samples_of_one_in_every_epoch(ddp):
    both = [learnt(rank["read"]) for rank in ddp["whole"]]
    merged = [sample for pair in zip(*both, strict=True) for sample in pair]
    alone = learnt(ddp["alone"][0]["read"])
    assert merged[:11] == alone[:11]
    assert merged[12:23] == alone[11:22]
    assert merged[12][0] == 1


def test_one_process_goes_on_with_the_right_samples_where_two_stopped(ddp):
    alone, fewer = learnt(ddp["alone"][0]["read"]), ddp["fewer"][0]["read"]
    assert fewer == alone[8:]
    assert ddp["fewer"][0]["losses"][:2] == ddp["whole"][0]["losses"][:2]
    assert len(ddp["fewer"][0]["losses"]) == 6


def test_two_processes_report_the_skipped_samples_of_both(found):
    alone, two = found["losing"]["skipped"]
    assert two == alone
    assert alone[0] and alone[1] > alone[0]


def test_two_processes_stop_together_once_both_have_lost_too_many_samples(found):
    first, second = found["losing"]["stopped"]
    assert first == second
    assert re.match(r"\d of 8 samples could not be used, more than --max_bad_fraction 0.01; .* the last: image", first)


def test_a_process_waits_for_the_first_one_longer_than_a_collective_would(found):
    first, second = found["first"]["waited"]
    assert (first["waited"], second["waited"]) == (False, True)
    assert first["seconds"] > 7 > 5


def test_a_process_that_waits_for_one_that_fails_stops_too(found):
    first, second = found["first"]["waited"]
    assert first["error"] == "it cannot be done"
    assert second["error"] == "the first process failed: a work that fails; it says why"


def test_the_first_process_alone_looks_and_aligns_and_all_have_what_one_would_have(found):
    first, second = found["first"]["aligned"]
    (alone,) = found["first"]["alone"]
    assert [(rank["looked"], rank["aligned"]) for rank in (first, second, alone)] == [(1, 1), (0, 0), (0, 1)]
    assert first["digest"] == second["digest"] == alone["digest"]
    assert second["losses"] == first["losses"]


def test_a_pretrained_base_trains_where_one_process_holds_text_alone(found):
    two, (alone,) = found["base"]["two"], found["base"]["alone"]
    steps = zip(*(rank["read"][-4:] for rank in two), strict=True)
    assert any(len({index % 2 for _, index in step}) == 2 for step in steps)
    assert two[0]["losses"] == two[1]["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert len(alone["losses"]) == 4 and len(set(alone["losses"])) == 4


@pytest.fixture(scope="module")
def deepspeed(tmp_path_factory):
    pytest.importorskip("deepspeed")
    return together(tmp_path_factory.mktemp("deepspeed"), "deepspeed")["deepspeed"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "words"), [("zero2", "gradients and optimiser are sharded"), ("zero3", "modules sharded")]
)
def test_deepspeed_shards_learns_as_whole_copies_do_and_goes_on_equal_to_the_bit(deepspeed, stage, words):
    assert words in deepspeed[f"{stage}_log"]
    for whole, again in zip(deepspeed[stage], deepspeed[f"{stage}_again"], strict=True):
        assert again["losses"] == whole["losses"]
    assert deepspeed[stage][0]["losses"] == pytest.approx(deepspeed["ddp"][0]["losses"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_deepspeed_in_sixteen_bits_trains_beside_a_tower_with_statistics_and_does_not_round_boxes(deepspeed, stage):
    for rank in deepspeed[f"{stage}_half"]:
        assert rank["weights"] == "torch.bfloat16"
        assert rank["boxes"] == ["torch.float32"]
        assert rank["tower"] == ["torch.bfloat16"]
        assert rank["losses"] == pytest.approx(deepspeed["ddp"][0]["losses"], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_an_estimate_for_deepspeed_says_what_its_engine_holds(deepspeed, stage):
    told = deepspeed[f"{stage}_estimated"]
    for rank in deepspeed[f"{stage}_half"]:
        for part, size in rank["held"].items():
            assert told[part] == pytest.approx(size, abs=64), part
