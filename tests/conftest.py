"""What every test may use.

The process that hands tests to its workers loads this file too, and runs none: torch is imported where it is used.
"""

from __future__ import annotations

import random

import numpy
import pytest


def pytest_collection_modifyitems(config, items):
    """Leaves out what is slow unless it is asked for by mark or by name, and what needs a GPU where there is none."""
    import torch

    asked = "slow" in config.getoption("-m") or any("::" in argument for argument in config.args)
    for item in items:
        if item.get_closest_marker("slow") and not asked:
            item.add_marker(pytest.mark.skip(reason="slow; run it by name or with -m slow"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Every test, and the fixtures made for it, draw the same numbers whatever ran before in its process."""
    import torch

    random.seed(0)
    numpy.random.seed(0)
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:  # each call of the former notes where it was made for every kind of accelerator: milliseconds a test
        torch.default_generator.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Two cores are all there is, and results must not depend on them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def own_indexes(tmp_path_factory):
    """Keeps the indexes of annotation files that tests make away from the user's cache."""
    folder = tmp_path_factory.mktemp("indexes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt4roi.data.index.index_folders", lambda: [folder])
        yield


@pytest.fixture(autouse=True, scope="session")
def no_proxies():
    """Lets tests ask the pages that they serve themselves also where the machine names a proxy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        yield


@pytest.fixture
def clip_model():
    """A tiny LLaMA under the original's region encoder on a tiny CLIP (32 px, 16 image tokens)."""
    from tiny import tiny_model

    return tiny_model("clip")


@pytest.fixture
def pyramid_model():
    """A tiny LLaMA under the light region encoder on a tiny timm pyramid (64 px, 4 image tokens)."""
    from tiny import tiny_model

    return tiny_model("pyramid")


@pytest.fixture
def tokenizer():
    """A tokenizer of bytes with the region tokens."""
    from tiny import tiny_tokenizer

    return tiny_tokenizer()


@pytest.fixture
def clip_processor(clip_model):
    """The processor of clip_model, in chat format."""
    from tiny import tiny_processor

    return tiny_processor(clip_model.config)


@pytest.fixture
def pyramid_processor(pyramid_model):
    """The processor of pyramid_model, in chat format."""
    from tiny import tiny_processor

    return tiny_processor(pyramid_model.config)
