"""Three local nodes as tests see them, and the checkers of cluster files."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from local import Cluster

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class RunningCluster:
    """Three nodes of two CPUs each, the folder they are recorded in, and what a client's environment is."""

    folder: Path
    cluster: Cluster

    def environment(self, token: bool = True) -> dict[str, str]:
        """This process's environment without anything of Ray's, and with the token's variables where asked."""
        from local import client_environment

        bare = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MOE_DIST_"))}
        bare["PYTHONPATH"] = str(REPOSITORY)
        return bare | (client_environment(self.cluster) if token else {})


def start_cluster(folder: Path, nodes: int) -> Iterator[RunningCluster]:
    """Local nodes of two CPUs each, with a token; stopped when the iterator is asked on, unless a test did."""
    import local

    yield RunningCluster(folder, local.start(folder, nodes=nodes, cpus_per_node=2, port=0))
    if local.load(folder) is not None:
        local.stop(folder)


def tool(name: str) -> str:
    """The path of a checker that comes as a package: beside this Python, or on the PATH."""
    path = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert path is not None, f"{name} is not installed: pip install -e '.[dev]'"
    return path
