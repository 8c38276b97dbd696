"""What all tests share: one thread a process, no clock, a cache of their own, real images where they are at hand."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before torch is imported: two threads on a busy core wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The made-up methods of tests/installed are found as an installed package is, here and in every process.
sys.path.insert(0, str(Path(__file__).parent / "installed"))
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], *filter(None, [os.environ.get("PYTHONPATH")])])

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
# Hypothesis fails an example that takes longer than 200 ms, as any may on a busy machine.
hypothesis.settings.register_profile("without a clock", deadline=None)
hypothesis.settings.load_profile("without a clock")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards and decoded images of the tests' datasets, shared by one session."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["MOE_DIST_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the repository; a test that needs it skips where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real images of ../shared/data are not here")
    return folder
