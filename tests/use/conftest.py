"""Trained models that the tests of a module, and of all others here, share."""

from __future__ import annotations

import pytest
from trained_models import TrainedModels


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedModels:
    """A small finished run of every method."""
    return TrainedModels(tmp_path_factory.mktemp("trained"))
