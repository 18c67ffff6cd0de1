"""Both stages, from argument lists to folders, on tiny models."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import timm
import torch
from tiny_training import COMMON, FAST, ONE_BY_ONE, losses, stage1, tensors

from gpt4roi.checkpoint.loading import load_model, load_processor
from gpt4roi.errors import InputError
from gpt4roi.models.classifier_head import save_classifier_head
from gpt4roi.train import main

pytestmark = pytest.mark.heavy


def changed(before, after):
    """Returns the first part of the names of tensors that differ."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture(scope="module")
def trained1(parts, tmp_path_factory):
    """Stage 1's folder after alignment and 30 steps."""
    folder = tmp_path_factory.mktemp("stage1")
    return stage1(folder, parts, "--align_regions", "2", "--feature_cache", f"{parts}/features", steps=30)


@pytest.mark.heavy
def test_stage_1_lowers_the_loss_and_leaves_language_model_and_tower_alone(parts, trained1, tmp_path):
    first = tensors(stage1(tmp_path / "one", parts, "--learning_rate", "0", steps=1))
    assert changed(first, tensors(trained1)) == {"region_encoder", "mm_projector"}
    history = losses(trained1)
    assert history[-1] < 0.75 * history[0]


@pytest.mark.heavy
def test_stage_2_starts_from_stage_1_and_changes_all_but_the_tower(parts, trained1, tmp_path):
    folder = tmp_path / "stage2"
    start = ["--stage", "2", "--output_dir", str(folder), "--model_name_or_path", str(trained1)]
    main([*start, "--max_steps", "3", "--dataset_config", f"{parts}/train.jsonl", *COMMON, *FAST])
    assert changed(tensors(trained1), tensors(folder)) == {"region_encoder", "mm_projector", "language_model"}
    model, processor = load_model(folder), load_processor(folder)
    assert processor.prompt_format == "chat"
    assert model.config.region_encoder_type == "light"


def test_the_model_may_be_read_by_whoever_may_read_its_config(trained1):
    files = list(trained1.rglob("model.safetensors"))
    assert len(files) == 2
    for file in files:
        assert file.stat().st_mode == (file.parent / "config.json").stat().st_mode


def test_only_weights_of_the_model_are_called_safetensors_beside_them(trained1):
    assert [path.name for path in trained1.glob("*.safetensors")] == ["model.safetensors"]
    assert (trained1 / "region_texts.cache").is_file()


def test_a_finished_folder_is_left_as_it_is(parts, trained1):
    before = (trained1 / "model.safetensors").stat().st_mtime_ns
    assert main(["--stage", "1", "--output_dir", str(trained1)]) == trained1
    assert (trained1 / "model.safetensors").stat().st_mtime_ns == before


def test_a_folder_of_another_run_is_refused(trained1):
    with pytest.raises(InputError, match="holds a run with other arguments"):
        main(["--stage", "1", "--output_dir", str(trained1), "--max_steps", "7"])
    with pytest.raises(InputError, match="holds a run of stage 1, not 2"):
        main(["--stage", "2", "--output_dir", str(trained1)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--stage=3 --output_dir={tmp}/a", "--stage must be 1 or 2, got '3'"),
        ("--stage=1", "--output_dir is missing"),
        ("--stage 1 --output_dir {tmp}/a --nonsense 1", "unknown arguments: --nonsense 1"),
        ("--stage 1 --output-dir {tmp}/a --nonsense=1", "unknown arguments: --nonsense 1"),
        ("--stage 1 --output_dir {tmp}/a --max_steps many", "argument --max_steps.*: invalid int value: .many"),
        ("--stage 1 --output_dir {tmp}/a --trainable_modules vision_tower", "got 'vision_tower'"),
        ("--stage 1 --output_dir {tmp}/a --learning_rates region_encoder", "expected module=number"),
        ("--stage 1 --output_dir {tmp}/a --dataset_config {tmp}/no.json", "no.json: no such file"),
        (
            "--stage 1 --output_dir {tmp}/a --per_device_train_batch_size 3",
            "--global_batch_size 4 is not a multiple of the 3 samples",
        ),
        (
            "--stage 2 --output_dir {tmp}/a --dataset_config {parts}/train.jsonl "
            "--model_name_or_path {parts}/language_model",
            "stage 2 starts from stage 1's",
        ),
        (
            "--stage 1 --output_dir {tmp}/a --dataset_config {parts}/train.jsonl --model_name_or_path {tmp}/nothing",
            "nothing: no tokenizer can be opened there",
        ),
    ],
)
def test_a_wrong_argument_is_one_readable_error(parts, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        main(arguments.format(tmp=tmp_path, parts=parts).split())


@pytest.mark.heavy
def test_a_sample_that_cannot_be_used_is_skipped_counted_and_named(parts, tmp_path, caplog):
    lines = (parts / "train.jsonl").read_text().splitlines()
    broken = json.loads(lines[0]) | {"image": "images/missing.png"}
    rows = [json.loads(line) | {"image": f"{parts}/{json.loads(line)['image']}"} for line in lines[1:]]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [broken, *rows]))
    folder = stage1(tmp_path / "out", parts, "--dataset_config", f"{tmp_path}/some.jsonl", *ONE_BY_ONE, steps=8)
    assert json.loads((folder / "trained.json").read_text())["steps"] == 8
    assert "Skipped a sample: image" in caplog.text
    assert f"{tmp_path}/some.jsonl#1" in caplog.text


def test_a_data_set_without_an_answer_learns_nothing_and_says_so(parts, tmp_path, caplog):
    line = {"conversations": [{"from": "human", "value": "Hello?"}]}
    (tmp_path / "silent.jsonl").write_text(4 * (json.dumps(line) + "\n"))
    with pytest.raises(InputError, match="there is no answer to train on"):
        stage1(tmp_path / "out", parts, "--dataset_config", f"{tmp_path}/silent.jsonl")


def with_a_missing_image(parts, path):
    """Writes the squares and one image that is not there, and returns the file."""
    rows = [json.loads(line) for line in (parts / "train.jsonl").read_text().splitlines()]
    rows = [row | {"image": f"{parts}/{row['image']}"} for row in [*rows[:-1], rows[0] | {"image": "missing.png"}]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_step_of_several_batches_goes_on_where_one_of_them_cannot_be_used(parts, tmp_path, caplog):
    data = with_a_missing_image(parts, tmp_path / "some.jsonl")
    one_at_once = ["--global_batch_size", "4", "--per_device_train_batch_size", "1", "--logging_steps", "1"]
    folder = stage1(tmp_path / "out", parts, "--dataset_config", str(data), *one_at_once, steps=4)
    assert json.loads((folder / "trained.json").read_text())["steps"] == 4
    assert caplog.text.count("Skipped a sample: image") == 2
    assert all(0.1 < loss < 20 for loss in losses(folder))


def test_two_processes_skip_a_sample_and_report_the_loss_of_one(parts, tmp_path):
    data = with_a_missing_image(parts, tmp_path / "some.jsonl")
    same = ["--dataset_config", str(data), "--per_device_train_batch_size", "1", "--logging_steps", "1", "--max_steps"]
    alone = stage1(tmp_path / "alone", parts, *same, "2")
    given = json.loads((alone / "run.json").read_text())["arguments"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "gpt4roi.train", "--stage", "1", "--output_dir", str(tmp_path / "two"), *given]
    done = subprocess.run([*command, "--ddp_backend", "gloo"], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(alone), rel=1e-3)


def test_the_alignment_without_kept_features_is_refused(parts, tmp_path):
    with pytest.raises(InputError, match="need --region_encoder_type light and --feature_cache FOLDER"):
        stage1(tmp_path / "out", parts, "--align_regions", "1")


def test_data_without_any_image_cannot_begin_a_light_encoder(parts, tmp_path):
    turns = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "yes"}]
    (tmp_path / "text.jsonl").write_text(f"{json.dumps({'conversations': turns})}\n" * 3)
    with pytest.raises(InputError, match="none of the first 3 samples shows an image to measure by: it is text alone"):
        stage1(tmp_path / "out", parts, "--dataset_config", str(tmp_path / "text.jsonl"))


@pytest.mark.heavy
def test_several_tokens_a_region_and_a_classifier_head_are_trained_and_saved(parts, tmp_path):
    names = ["a fox", "a hen"]
    classifier = timm.create_model("test_efficientnet", num_classes=2)
    save_classifier_head(classifier, names, tmp_path / "head")
    chosen = ["--tokens_per_region", "4", "--classifier_head", f"{tmp_path}/head", "--align_head_weight", "2"]
    aligned = ["--align_regions", "2", "--align_weight", "1", "--feature_cache", f"{parts}/features"]
    folder = stage1(tmp_path / "out", parts, *chosen, *aligned, steps=2)
    model, processor = load_model(folder), load_processor(folder)
    assert (model.config.tokens_per_region, processor.tokens_per_region, model.config.class_names) == (4, 4, names)
    assert model.config.region_texts == sorted({"red", "green", "blue"})
    assert torch.equal(model.region_encoder.head.weight, classifier.classifier.weight)
    rows = [[*processor.tokenizer(f" {name}").input_ids[:3], processor.tokenizer.eos_token_id] for name in names]
    table = model.get_input_embeddings().weight.detach()
    expected = table[torch.tensor(rows)].flatten(1)
    torch.testing.assert_close(
        model.region_encoder.head.names / model.region_encoder.head.names[0, 0], expected / expected[0, 0]
    )
    assert model.region_encoder.gate.weight.abs().max() > 0
    lengths = model.region_encoder.discriminant.prototypes.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(3), atol=0.01, rtol=0)


def test_a_classifier_head_is_for_the_light_encoder(parts, tmp_path):
    with pytest.raises(InputError, match="--classifier_head is for --region_encoder_type light"):
        stage1(tmp_path / "out", parts, "--classifier_head", "head", tower="clip")


@pytest.mark.heavy
def test_a_later_training_adds_its_texts_to_those_that_regions_are_compared_with(parts, tmp_path):
    save_classifier_head(timm.create_model("test_efficientnet", num_classes=2), ["a fox", "a hen"], tmp_path / "head")
    chosen = [
        "--tokens_per_region",
        "2",
        "--classifier_head",
        f"{tmp_path}/head",
        "--feature_cache",
        f"{parts}/features",
    ]
    first = stage1(tmp_path / "one", parts, *chosen, "--align_regions", "1", steps=1)
    turns = [{"from": "human", "value": "What is <region1>?"}, {"from": "gpt", "value": "a kite"}]
    entry = {"image": str(parts / "images/0.png"), "boxes": [[2, 2, 28, 30]], "conversations": turns}
    (tmp_path / "own.jsonl").write_text(f"{json.dumps(entry)}\n" * 2)
    start = ["--stage", "2", "--output_dir", str(tmp_path / "two"), "--model_name_or_path", str(first)]
    folder = main([*start, "--max_steps", "1", "--dataset_config", str(tmp_path / "own.jsonl"), *COMMON, *FAST])
    assert load_model(folder).config.region_texts == ["a kite", "blue", "green", "red"]
    adapter = ["--lora_r", "2", "--feature_cache", f"{parts}/features", "--align_weight", "1"]
    with pytest.raises(InputError, match="add texts to a model with class_names, and an adapter"):
        main(
            [
                *start[:3],
                str(tmp_path / "three"),
                *start[4:],
                "--max_steps",
                "1",
                "--dataset_config",
                str(tmp_path / "own.jsonl"),
                *adapter,
                *COMMON,
                *FAST,
            ]
        )
