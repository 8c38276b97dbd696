"""What the cluster's tests share: the repository, and cluster/local.py importable as the script it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "cluster"))


@pytest.fixture
def repository() -> Path:
    """The root of the working tree."""
    return REPOSITORY
