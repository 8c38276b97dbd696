"""Three local nodes as tests see them."""

from __future__ import annotations

import os
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
