"""How tokens are drawn: by the seed alone, from the likeliest, each prompt for itself."""

from __future__ import annotations

import pytest
import torch

from gpt4roi import InputError
from gpt4roi.generation.sampling import SamplingParams

LOGITS = torch.tensor([[0.0, 2.0, 1.0, -1.0]])


def draws(params: SamplingParams, count: int = 4000) -> torch.Tensor:
    sampler = params.sampler()
    return torch.cat([sampler(LOGITS, [0]) for _ in range(count)])


def test_shares_follow_the_softmax_at_the_temperature():
    shares = torch.bincount(draws(SamplingParams(temperature=1.5, seed=0)), minlength=4) / 4000

    assert torch.allclose(shares, (LOGITS[0] / 1.5).softmax(0), atol=0.02)


def test_top_p_leaves_the_likeliest_tokens():
    assert set(draws(SamplingParams(temperature=1.5, top_p=0.7, seed=0), 300).tolist()) == {1, 2}
    assert set(draws(SamplingParams(temperature=1.5, top_p=1e-6, seed=0), 50).tolist()) == {1}


def test_a_prompt_draws_the_same_whatever_its_neighbours():
    alone, together = (
        SamplingParams(temperature=2.0, seed=5).sampler(),
        SamplingParams(temperature=2.0, seed=5).sampler(),
    )
    rows = LOGITS.expand(3, -1)

    first = [alone(LOGITS, [8]).item() for _ in range(20)]
    second = [together(rows, [3, 8, 1])[1].item() for _ in range(20)]

    assert first == second
    assert first != [SamplingParams(temperature=2.0, seed=6).sampler()(LOGITS, [8]).item() for _ in range(20)]


def test_without_a_seed_draws_differ_from_call_to_call():
    assert draws(SamplingParams(temperature=2.0), 40).tolist() != draws(SamplingParams(temperature=2.0), 40).tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 1.5},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": "warm"},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": "one"},
        {"stop": ["", "."]},
        {"stop": [3]},
    ],
    ids=str,
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(InputError, match=f"^{next(iter(wrong))} must be"):
        SamplingParams(**wrong)
