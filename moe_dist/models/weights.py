"""The weights of a published network from a file: .safetensors or .pth, never unpickled, and told for what it is."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from moe_dist.errors import UserError

SUFFIXES = (".safetensors", ".pth")
SAVE = "save the network's state_dict() alone"
HEAD_BYTES = 512
_NO_WEIGHTS = {
    rb"$": "an empty file; was the download broken off?",
    rb"version https://git-lfs": "a pointer of Git LFS; fetch the file itself by `git lfs pull`",
    rb"<(!doctype|html|\?xml|head)": "a web page; download the file itself, not the page about it",
    rb"[{\[]\s*[\"{\[]": "JSON, as a server's answer; download the file itself",
}
"""What files begin with that are often taken for weights, and what they are."""
_DAMAGED = (ValueError, TypeError, LookupError, AttributeError, AssertionError, OSError)
"""What torch raises for bytes that are no pickle of its own, or half of one."""


def load_file_into(network: nn.Module, path: Path, name: str) -> None:
    """Load the .safetensors or .pth file of the network called `name`. Raises UserError where it is not its state."""
    load_state(network, _read(path), f"{path} for {name}")


def why_not_fetched(error: Exception) -> str:
    """Why weights could not be fetched, on one line, and never torch's advice to unpickle whatever came."""
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return "what came is not plain tensors"
    return " ".join(str(error).splitlines()[:1]) or type(error).__name__


def _read(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file by name. Raises UserError, which says what the file is instead, if it holds others."""
    if not path.is_file():
        raise UserError(f"weights {path}: no such file")
    head, size = _head(path), path.stat().st_size
    for looks_like, reason in _NO_WEIGHTS.items():
        if re.match(looks_like, head, re.IGNORECASE):
            raise UserError(f"weights {path}: not plain tensors but {reason}")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, *_DAMAGED):
        # Without torch's words, which advise to unpickle whatever the file holds.
        raise UserError(
            f"weights {path}: not plain tensors, or damaged ({size:,} bytes); save the network's state_dict(), or "
            "download the file again"
        ) from None
    return _require_named_tensors(state, path)


def _head(path: Path) -> bytes:
    """The first bytes of a file, without blanks before them."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES).lstrip()
    except OSError as error:
        raise UserError(f"weights {path}: cannot be read ({error.strerror})") from None


def _unpickled(path: Path) -> Any:
    """What a .pth file holds, if it is tensors, numbers, words and collections of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about the file's age, which nobody can mend
        return torch.load(path, map_location="cpu", weights_only=True)


def _require_named_tensors(state: Any, path: Path) -> Mapping[str, Tensor]:
    """Return `state`. Raises UserError where it is no mapping of words to tensors."""
    if not isinstance(state, Mapping):
        raise UserError(f"weights {path}: holds a {type(state).__name__}, not tensors by name; {SAVE}")
    for name, value in state.items():
        if not isinstance(name, str):
            raise UserError(f"weights {path}: a tensor is named {name!r}, which is no word; {SAVE}")
        if isinstance(value, Mapping):
            raise UserError(f"weights {path}: holds tensors under {name!r}, not at its top; {SAVE}")
        if not isinstance(value, Tensor):
            raise UserError(f"weights {path}: {name!r} is a {type(value).__name__}, not a tensor; {SAVE}")
    return state


def load_state(network: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load `state`. Raises UserError, calling it `what`, where its names or shapes are not the network's."""
    expected = network.state_dict()
    missing = sorted(expected.keys() - state.keys())
    if all(name.endswith("num_batches_tracked") for name in missing):
        # Files often leave these out. Only averages without momentum need them.
        state, missing = {name: expected[name] for name in missing} | dict(state), []
    unexpected = sorted(state.keys() - expected.keys())
    misshapen = sorted(key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape)
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    found = []
    for problem, keys in problems.items():
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            found.append(f"{', '.join(keys[:3])}{more} {problem}")
    if found:
        raise UserError(f"weights {what}: {'; '.join(found)}; give the state_dict of that very network")
    network.load_state_dict(state)
