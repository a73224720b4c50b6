"""Fixtures of the tests on training runs."""

from pathlib import Path

import pytest
import torch

from tests.support.data.sampled_groups import make_base


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Trains in one thread, which takes a fraction of the time for models of this size."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model, which a module's tests share."""
    return make_base(tmp_path_factory.mktemp("models") / "tiny")
