"""Fixtures that many tests share."""

import pytest

from bonbon.demo.models import TinyModels
from bonbon.demo.models import tiny_models as shipped_models


@pytest.fixture(scope="session")
def tiny_models() -> TinyModels:
    """The models that ship with the package."""
    return shipped_models()
