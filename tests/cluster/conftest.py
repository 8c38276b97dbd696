"""What the cluster's tests share: the repository, cluster/local.py as the script it is, and three nodes of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_cluster import REPOSITORY, RunningCluster, start_cluster

sys.path.insert(0, str(REPOSITORY / "cluster"))


@pytest.fixture
def repository() -> Path:
    """The root of the working tree."""
    return REPOSITORY


@pytest.fixture(scope="module")
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A local cluster with a token, stopped at the end unless the test did."""
    yield from start_cluster(tmp_path_factory.mktemp("cluster"), nodes=3)
