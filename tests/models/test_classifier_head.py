"""A tower's own classifier as a fixed part of the light encoder's embeddings."""

from __future__ import annotations

import pytest
import timm
import torch
from tiny import tiny_config, tiny_model

from gpt4roi.errors import InputError
from gpt4roi.models.classifier_head import TEMPERATURE, ClassifierHead, read_classifier_head, save_classifier_head
from gpt4roi.models.region_texts import TRUST_SCALES
from gpt4roi.train.param_groups import set_trainable

NAMES = ["a fox", "a hen", "a red bus", "a bus"]


@pytest.fixture(scope="module")
def classifier():
    """timm's classifier of the tiny tower, with statistics of its own, four classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("test_efficientnet", num_classes=len(NAMES)).eval()
        for buffer in model.bn2.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 2)
    return model


@pytest.fixture
def file(classifier, tmp_path):
    save_classifier_head(classifier, NAMES, tmp_path / "head.safetensors")
    return tmp_path / "head.safetensors"


@pytest.fixture
def model(file):
    """A tiny model with two tokens a region, and the head."""
    settings, tensors = read_classifier_head(file)
    model = tiny_model("pyramid", tokens_per_region=2, **settings)
    model.region_encoder.head.load(tensors, torch.randn(4, 64, generator=torch.Generator().manual_seed(0)))
    model.region_encoder.set_texts(torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(1)))
    model.config.region_texts = ["red", "green", "a fox"]
    return model


def pooled_boxes(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 168, 4, 4, generator=torch.Generator().manual_seed(1))


def of_one_length(words: torch.Tensor) -> torch.Tensor:
    """Brings float[M, 64] to rows float[2 M, 32] of root mean square 1, the scale of a fresh norm."""
    tokens = words.unflatten(1, (2, 32)).flatten(0, 1)
    return tokens / tokens.pow(2).mean(-1, keepdim=True).sqrt()


def test_the_saved_head_answers_as_the_classifier_does(classifier, file):
    settings, tensors = read_classifier_head(file)
    assert settings == {"class_names": NAMES, "classifier_hidden_size": 256, "classifier_activation": "silu"}
    head = ClassifierHead(64, 256, "silu", 4, 1)
    head.load(tensors, torch.zeros(4, 1))
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        cells = classifier.blocks(classifier.bn1(classifier.conv_stem(pixels)))
        torch.testing.assert_close(head.logits(cells), classifier(pixels), atol=1e-4, rtol=1e-4)


def test_a_classifier_right_behind_the_last_map_has_no_convolution(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_classifier_head(timm.create_model("test_resnet", num_classes=4), NAMES, tmp_path / "head")
    settings, tensors = read_classifier_head(tmp_path / "head")
    assert settings["classifier_hidden_size"] is None
    assert sorted(tensors) == ["bias", "weight"]


def test_a_head_that_does_more_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"the head of .* is more than a 1x1 convolution"):
        save_classifier_head(timm.create_model("test_convnext", num_classes=4), NAMES, tmp_path / "head")


def test_another_number_of_names_is_refused(classifier, tmp_path):
    with pytest.raises(InputError, match="3 class names for a classifier of 4 classes"):
        save_classifier_head(classifier, NAMES[:3], tmp_path / "head")


def test_another_file_is_refused(tmp_path):
    (tmp_path / "head").write_text("no head")
    with pytest.raises(InputError, match="expected a file of save_classifier_head"):
        read_classifier_head(tmp_path / "head")


def test_a_closed_gate_leaves_the_mixture_of_the_names(model):
    encoder = model.region_encoder
    torch.nn.init.constant_(encoder.gate.bias, -50)
    with torch.no_grad():
        probabilities = (encoder.head.logits(encoder._last_level(pooled_boxes())) / TEMPERATURE).softmax(-1)
        sharp = probabilities**4 / (probabilities**4).sum(1, keepdim=True)
        expected = of_one_length(sharp @ encoder.head.names)
        torch.testing.assert_close(encoder.embed(pooled_boxes()), expected, atol=1e-4, rtol=1e-3)


def test_an_open_gate_leaves_the_words_of_the_nearest_text(model):
    encoder = model.region_encoder
    torch.nn.init.constant_(encoder.gate.bias, 50)
    with torch.no_grad():
        encoder.output.weight.zero_()
        encoder.output.bias.copy_(encoder.texts[1])
        words = encoder.embed(pooled_boxes())
    torch.testing.assert_close(words, of_one_length(encoder.texts[[1, 1]]), atol=0.05, rtol=0)


def test_a_fresh_gate_trusts_both_alike_and_then_who_is_surer(model):
    encoder = model.region_encoder
    with torch.no_grad():
        _, judgement = encoder.learned(pooled_boxes())
        assert not judgement.trust.any()
        encoder.gate.weight[0, 0], encoder.gate.weight[0, 4] = -1, 1
        _, judgement = encoder.learned(pooled_boxes())
    expected = judgement.of_texts.amax(1) / TRUST_SCALES[4] - judgement.of_classes.amax(1) / TRUST_SCALES[0]
    torch.testing.assert_close(judgement.trust, expected)


def test_without_texts_of_a_training_the_embedding_is_what_is_learned(model):
    encoder = model.region_encoder
    encoder.set_texts(torch.zeros(0, 2, 32))
    with torch.no_grad():
        rows, judgement = encoder.learned(pooled_boxes())
        assert judgement is None
        assert torch.equal(encoder.embed(pooled_boxes()), rows)


def test_disturbing_what_is_learned_leaves_the_head_alone(model):
    encoder = model.region_encoder
    torch.nn.init.constant_(encoder.gate.bias, -50)
    with torch.no_grad():
        calm = encoder.embed(pooled_boxes())
        encoder.set_regularisation(noise=0.5, mixup=0.5)
        torch.testing.assert_close(encoder.train().embed(pooled_boxes()), calm)


def test_the_head_sees_the_map_before_it_is_standardised(model):
    encoder = model.region_encoder
    maps = model.encode_image(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))[1]
    boxes = [torch.tensor([[0.1, 0.2, 0.8, 0.9]]), torch.zeros(0, 4)]
    with torch.no_grad():
        before = encoder._last_level(encoder.pool(maps, boxes))
        model.calibrate(maps)
        after = encoder._last_level(encoder.pool(maps, boxes))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_nothing_of_the_head_is_trained(model):
    set_trainable(model, ("region_encoder",))
    assert not list(model.region_encoder.head.parameters())
    assert model.region_encoder.gate.weight.requires_grad


def test_the_head_is_saved_with_the_model(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved")
    assert (again.config.class_names, again.config.region_texts) == (NAMES, ["red", "green", "a fox"])
    for name, value in model.region_encoder.state_dict().items():
        assert torch.equal(again.region_encoder.state_dict()[name], value), name
    assert model.region_encoder.head.names.abs().max() > 0


def test_class_names_need_the_light_encoder():
    with pytest.raises(InputError, match="class_names need region_encoder_type='light', got 'gpt4roi'"):
        tiny_config("clip", class_names=NAMES)
