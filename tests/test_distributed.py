"""Several processes on one task: who computes where."""

import pytest
import torch

from gpt4roi.distributed import DistributedContext


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine that says it has two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize("name", [None, "cuda"])
def test_each_of_several_processes_has_a_gpu_of_its_own(two_gpus, name):
    assert [DistributedContext(rank, 4, rank).device(name) for rank in range(4)] == [
        "cuda:0",
        "cuda:1",
        "cuda:0",
        "cuda:1",
    ]


@pytest.mark.parametrize("name", ["cuda:1", "cpu"])
def test_a_device_that_is_named_is_taken_by_every_process(two_gpus, name):
    assert [DistributedContext(rank, 2, rank).device(name) for rank in range(2)] == [name, name]


@pytest.mark.parametrize("name", [None, "cuda"])
def test_one_process_takes_the_device_as_it_is_named(two_gpus, name):
    assert DistributedContext().device(name) == name


def test_without_a_gpu_the_name_is_left_to_be_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert DistributedContext(1, 2, 1).device("cuda") == "cuda"
