"""What made a result: the code's version, the machines of the ranks, and how far each of them came."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from moe_dist import __version__


class Made:
    """What made a training so far: its stretches, each by one code on one set of machines, in the order of steps.

    A stretch: from_step, to_step, seconds, workers, hardware (by rank), code, torch, precision and start.
    """

    def __init__(self, earlier: Sequence[dict[str, Any]], step: int, ranks: int, precision: str, start: int) -> None:
        """earlier: the stretches up to `step`, of a checkpoint; start: the number of the run's start. Collective."""
        self._started = time.perf_counter()
        about = {
            "workers": ranks,
            "hardware": _hardware_of_ranks(ranks),
            "code": code_version(),
            "torch": torch.__version__,
            "precision": precision,
            "start": start,
        }
        self._before = 0.0
        self._stretches = [dict(stretch) for stretch in earlier]
        if earlier and about.items() <= earlier[-1].items():
            self._before = earlier[-1]["seconds"]
        else:
            self._stretches.append({"from_step": step, "to_step": step, "seconds": 0.0, **about})

    def up_to(self, step: int) -> list[dict[str, Any]]:
        """All stretches, the last one having come to `step`."""
        self._stretches[-1] |= {"to_step": step, "seconds": self._before + time.perf_counter() - self._started}
        return self._stretches


def _hardware_of_ranks(ranks: int) -> list[str]:
    """The ranks' machines in words, equal ones counted: "2 x 8 cores of ...". Collective."""
    found: list[Any] = [hardware()]
    if ranks > 1:
        found = [None] * ranks
        dist.all_gather_object(found, hardware())
    return [words if count == 1 else f"{count} x {words}" for words, count in Counter(found).items()]


@cache
def hardware() -> str:
    """Processor, its cores and vector instructions, and the GPUs of this machine, in words."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    instructions = torch.backends.cpu.get_cpu_capability()
    return ", ".join([f"{os.cpu_count()} cores of {name} ({instructions})", *gpus])


@cache
def code_version() -> str:
    """The version of the package's code: with its commit in a checkout, else with a digest of its files.

    "0.1.0+c4bf989a12", "0.1.0+c4bf989a12.changed" where files differ from the commit, "0.1.0+files.1f2e3d4c5b".
    """
    package = Path(__file__).parents[1]
    tracked = _git(package, "ls-files", "--", "__init__.py")  # not an installation below somebody's repository
    commit = _git(package, "rev-parse", "--short=10", "HEAD") if tracked else ""
    if commit:
        changed = ".changed" if _git(package, "status", "--porcelain", "--", ".") else ""
        return f"{__version__}+{commit}{changed}"
    digest = sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return f"{__version__}+files.{digest.hexdigest()[:10]}"


def _git(folder: Path, *command: str) -> str:
    """What git says about the folder; nothing where the folder is in no repository of its own, or there is no git."""
    try:
        answer = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()
