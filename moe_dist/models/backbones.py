"""torchvision networks by name, with weights by name or from a file: as classifiers, or cut to their feature map.

Letters in shapes: B samples of a batch, C classes, K channels of a map, s map side, S image side. Pretrained weights
expect images normalised with ImageNet's mean and standard deviation. `weights` is None for random ones, the name of
torchvision's ("DEFAULT", "IMAGENET1K_V2"), or a .safetensors or .pth file.
"""

from __future__ import annotations

import difflib
import pickle
import re
import warnings
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from moe_dist.errors import UserError
from moe_dist.vision import torchvision

models = torchvision.models

NOT_OFFERED = (
    "googlenet",  # several outputs while training, as inception
    "inception*",
    "densenet*",  # the published weights carry the names of an older layout
)
NO_CONVOLUTIONAL_MAP = ("vit_*", "swin_*", "maxvit_*")
HEADS = ("avgpool", "classifier", "fc")
"""Names of the parts after the last feature map in torchvision's convolutional networks."""
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


def backbone(name: str, weights: str | Path | None = None) -> nn.Module:
    """The torchvision network `name` as published: images [B, 3, S, S] -> logits [B, 1000].

    Raises UserError for an unknown name or unknown weights, for weights that cannot be fetched, and for a file that
    does not hold this network's state.
    """
    _require_known(name, models.list_models(module=models, exclude=NOT_OFFERED))
    if weights is None:
        return models.get_model(name, weights=None)
    network = models.get_model(name, weights=None)
    if Path(weights).suffix in (".safetensors", ".pth"):
        load_file_into(network, Path(weights), name)
    else:
        _load(network, _fetch(name, str(weights)), f"{weights} for {name}")
    return network


def feature_map(name: str, weights: str | Path | None = None) -> nn.Module:
    """The network `name` up to its last feature map, without pooling and classifier (Eq 7-8).

    Images [B, 3, S, S] -> map [B, K, s, s]; for EfficientNet-B1, K = 1280 and s = S / 32.
    Raises UserError as `backbone` does, and for a network whose last map is not convolutional.
    """
    require_known(name)
    parts = backbone(name, weights).named_children()
    return nn.Sequential(*(part for _, part in takewhile(lambda child: child[0] not in HEADS, parts)))


def classifier(name: str, weights: str | Path | None, classes: int, dropout: float) -> nn.Module:
    """The network `name` with a fresh last layer: images [B, 3, S, S] -> logits [B, C].

    `dropout` is set on the dropout layers beside the last layer; where there are none, one is added before it.
    EfficientNet-B1 with 0.6 is the dense rival of Table 2. Raises UserError as `backbone` does, and for a network whose
    last layer is not linear.
    """
    network = backbone(name, weights)
    linear = [(path, module.in_features) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(f"backbone {name!r}: its last layer is not linear, so it cannot be given {classes} classes")
    path, inputs = linear[-1]
    fresh = nn.Linear(inputs, classes)
    dropouts = [
        part for part in network.get_submodule(path.rpartition(".")[0]).children() if isinstance(part, nn.Dropout)
    ]
    for part in dropouts:
        part.p = dropout
    network.set_submodule(path, fresh if dropouts else nn.Sequential(nn.Dropout(dropout), fresh))
    return network


def _require_known(name: str, known: list[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3) or ["efficientnet_b1", "resnet18"]
        raise UserError(f"backbone {name!r} is not one torchvision offers for this; try {', '.join(close)}")


def require_known(name: str) -> None:
    """Raise UserError, with near names, where torchvision has no convolutional network `name` that is offered."""
    _require_known(name, models.list_models(module=models, exclude=(*NOT_OFFERED, *NO_CONVOLUTIONAL_MAP)))


def load_file_into(network: nn.Module, path: Path, name: str) -> None:
    """Load the .safetensors or .pth file of the network called `name`. Raises UserError where it is not its state."""
    _load(network, _read(path), f"{path} for {name}")


def _fetch(name: str, weights: str) -> Mapping[str, Tensor]:
    """torchvision's published weights, from its cache or the network; never unpickled."""
    published = models.get_model_weights(name)
    if weights not in published.__members__ and weights != "DEFAULT":
        choices = ", ".join(published.__members__)
        raise UserError(f"weights {weights!r}: {name} has {choices}, DEFAULT, or a .safetensors or .pth file")
    try:
        return published[weights].get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:  # RuntimeError: not the published file's hash
        raise UserError(
            f"the {weights} weights of {name} could not be fetched ({why_not_fetched(error)}); without a network, give "
            "a local .safetensors or .pth file as weights, or use `weights: null` or the `siamese` features"
        ) from None


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


def _load(network: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
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
