"""The light region encoder and projector."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model

from gpt4roi.models.light_encoder import BOX_MEAN, POSITION_LIMIT, Standardise

BOXES = [torch.tensor([[0.1, 0.1, 0.5, 0.9], [0.3, 0.0, 1.0, 0.4]]), torch.tensor([[0.5, 0.5, 0.9, 0.8]])]


@pytest.fixture
def maps(pyramid_model):
    pixels = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return pyramid_model.encode_image(pixels)[1]


def rms(values: torch.Tensor) -> float:
    return values.detach().float().pow(2).mean().sqrt().item()


def test_standardise_measures_each_channel_over_images_and_cells():
    values = torch.randn(130, 3, 2, 2) * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1) + 7
    standardise = Standardise(3)
    standardise.calibrate(values.half())
    torch.testing.assert_close(standardise.mean, values.mean((0, 2, 3)), atol=1e-2, rtol=0)
    torch.testing.assert_close(standardise.std, values.std((0, 2, 3), correction=0), atol=1e-2, rtol=0)
    after = standardise(values)
    torch.testing.assert_close(after.std((0, 2, 3), correction=0), torch.ones(3), atol=2e-2, rtol=0)


def test_an_embedding_is_content_plus_position(pyramid_model, maps):
    encoder = pyramid_model.region_encoder
    pair = [level[:2] for level in maps]
    with torch.no_grad():
        whole = encoder(pair, BOXES)
        torch.testing.assert_close(whole, encoder.content(pair, BOXES) + encoder.position(BOXES))
    assert whole.shape == (3, 32)


def test_content_and_position_start_at_the_scale_of_the_words(pyramid_model, maps):
    pyramid_model.calibrate(maps)
    encoder = pyramid_model.region_encoder
    encoder.init_output_rms(0.1356)
    many = [torch.rand(500, 2).repeat(1, 2) * 0.5 + torch.tensor([0.0, 0.0, 0.1, 0.1]) * (1 + torch.rand(500, 1) * 4)]
    encoder.calibrate(maps, many)
    with torch.no_grad():
        assert rms(encoder.content([level[:2] for level in maps], BOXES)) == pytest.approx(0.1356, rel=1e-3)
        assert rms(encoder.position(many)) == pytest.approx(0.1356, rel=0.5)
    pyramid_model.mm_projector.init_output_rms(0.2)
    with torch.no_grad():
        tokens = maps[-1].flatten(2).transpose(1, 2)
        assert rms(pyramid_model.mm_projector(tokens)) == pytest.approx(0.2, rel=1e-3)


def test_the_same_box_elsewhere_has_the_same_content_in_a_uniform_image(pyramid_model):
    flat = [
        torch.ones(1, channels, 64 // stride, 64 // stride)
        for channels, stride in ((24, 4), (32, 8), (48, 16), (64, 32))
    ]
    boxes = [torch.tensor([[0.2, 0.2, 0.4, 0.4], [0.5, 0.5, 0.7, 0.7]])]
    with torch.no_grad():
        content = pyramid_model.region_encoder.content(flat, boxes)
        position = pyramid_model.region_encoder.position(boxes)
    torch.testing.assert_close(content[0], content[1], atol=1e-5, rtol=0)
    assert (position[0] - position[1]).abs().max() > 0.1


def test_a_position_beside_words_is_bounded_and_tells_ratios_of_sizes():
    encoder = tiny_model("pyramid", tokens_per_region=2).region_encoder
    assert encoder.standardise_box.mean.tolist() == pytest.approx([0.5, 0.5, -1.3, -1.3, -1.3])
    encoder.standardise_box.mean.fill_(-2)
    encoder.standardise_box.std.fill_(0.5)
    widths = torch.tensor([-2.0, -1.5, -1.25, -1.0, 0.0]).exp()
    with torch.no_grad():
        encoder.place.weight.zero_()[-1, 2] = 1  # the width alone
        boxes = torch.stack([torch.zeros(5), torch.zeros(5), widths, torch.ones(5)], dim=1)
        position = encoder.position([boxes]).unflatten(0, (5, 2))[:, -1, -1]
    beyond = 1.5 + torch.tanh(torch.tensor([0.5, 2.5]))
    torch.testing.assert_close(position, torch.cat([torch.tensor([0.0, 1.0, 1.5]), beyond]), atol=1e-5, rtol=0)
    assert position[-1] < POSITION_LIMIT


def test_calibration_is_saved_with_the_model(pyramid_model, maps, tmp_path):
    pyramid_model.calibrate(maps, BOXES)
    pyramid_model.save_pretrained(tmp_path)
    again = type(pyramid_model).from_pretrained(tmp_path)
    for name, value in pyramid_model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert not torch.equal(again.region_encoder.standardise[0].mean, torch.zeros(24))
    assert not torch.equal(again.region_encoder.standardise_box.mean, torch.tensor(BOX_MEAN))


def test_mixing_and_noise_act_only_while_training(pyramid_model, maps):
    encoder = pyramid_model.region_encoder
    pair = [level[:2] for level in maps]
    with torch.no_grad():
        calm = encoder(pair, BOXES)
        encoder.set_regularisation(noise=0.2, mixup=0.3)
        assert torch.equal(encoder(pair, BOXES), calm)
        encoder.train()
        assert not torch.equal(encoder(pair, BOXES), calm)
        encoder.set_regularisation()
        assert torch.equal(encoder(pair, BOXES), calm)


def test_no_box_gives_zero_gradients(pyramid_model, maps):
    features = pyramid_model.region_encoder(maps, [torch.zeros(0, 4)] * 4)
    assert features.shape == (0, 32)
    features.sum().backward()
    assert all(not value.grad.any() for value in pyramid_model.region_encoder.parameters())


@pytest.mark.parametrize(("grid", "count"), [(1, 1), (2, 4), (None, 4)])
def test_the_last_map_is_pooled_to_the_grid_asked_for(grid, count):
    model = tiny_model("pyramid", image_grid_size=grid)
    assert model.config.image_seq_length == count
    with torch.no_grad():
        assert model.get_image_features(torch.zeros(2, 3, 64, 64)).shape == (2, count, 32)


@pytest.mark.parametrize("kind", ["clip", "pyramid"])
def test_bfloat16_autocast_trains(kind):
    model = tiny_model(kind).train()
    config = model.config
    ids = [config.image_start_token_id, *[config.image_token_id] * config.image_seq_length, config.image_end_token_id]
    ids = torch.tensor([[1, *ids, config.region_token_id, 40, 41]])
    pixels = torch.randn(1, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(0))
    losses = {}
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = model(ids, pixel_values=pixels, boxes=BOXES[1:], labels=ids)
        output.loss.backward()
        losses[enabled] = output.loss.item()
        assert all(value.grad.isfinite().all() for value in model.region_encoder.parameters())
    assert losses[True] == pytest.approx(losses[False], rel=2e-2)
