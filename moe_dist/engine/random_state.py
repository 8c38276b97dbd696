"""The state of a process's random generators, as tensors, which a checkpoint stores without pickling."""

from __future__ import annotations

import hashlib
import math
import random

import numpy as np
import torch
from torch import Tensor

GeneratorState = dict[str, Tensor]
"""The states of the generators of torch, CUDA (if there is a GPU), NumPy and Python, by name."""


def random_state() -> GeneratorState:
    """The state of the global generators of this process."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, next_gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy.keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy.rest": torch.tensor([position, has_gauss, gauss], dtype=torch.float64),
        "python.words": torch.tensor([version, *words], dtype=torch.int64),
        "python.gauss": torch.tensor([math.nan if next_gauss is None else next_gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: GeneratorState) -> None:
    """Set the generators to a state that `random_state` returned."""
    torch.set_rng_state(state["torch"])
    position, has_gauss, gauss = state["numpy.rest"].tolist()
    keys = state["numpy.keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), gauss))
    version, *words = state["python.words"].tolist()
    next_gauss = float(state["python.gauss"])
    random.setstate((version, tuple(words), None if math.isnan(next_gauss) else next_gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_random(origin: bytes, rank: int) -> None:
    """Seed the generators from `origin` (a job's seed, a saved generator), differently on each rank."""
    digest = hashlib.sha256(origin + rank.to_bytes(8, "little")).digest()
    seed = int.from_bytes(digest[:4], "little")
    torch.manual_seed(seed)  # every device's
    np.random.seed(seed)
    random.seed(seed)
