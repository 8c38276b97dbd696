"""What the cluster's tests share: the repository, cluster/local.py as the script it is, and three nodes of it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_cluster import REPOSITORY, RunningCluster

sys.path.insert(0, str(REPOSITORY / "cluster"))


@pytest.fixture
def repository() -> Path:
    """The root of the working tree."""
    return REPOSITORY


@pytest.fixture(scope="module")
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A local cluster with a token, stopped at the end unless the test did."""
    import local

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("cluster")
    yield RunningCluster(folder, local.start(folder, nodes=3, cpus_per_node=2, port=port))
    if local.load(folder) is not None:
        local.stop(folder)
