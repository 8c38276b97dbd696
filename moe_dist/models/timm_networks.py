"""timm's networks by the name `timm/NAME`, with timm's published weights or from a file. timm itself is imported late.

Letters in shapes: B samples of a batch, K channels of a map, s map side.
"""

from __future__ import annotations

import difflib
import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moe_dist.errors import UserError
from moe_dist.models.weights import SUFFIXES, load_file_into, why_not_fetched
from moe_dist.vision import timm

TIMM = "timm/"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224
AMPLE = 224
"""Image side that is not too small for any network."""


def require_timm(name: str) -> None:
    """Raise UserError, with near names, where timm has no network `name`."""
    own = name.removeprefix(TIMM)
    if not timm().is_model(own):
        close = difflib.get_close_matches(own, timm().list_models(), n=3) or ["densenet121"]
        raise UserError(
            f"backbone {name!r} is no network of timm's; try {', '.join(TIMM + near for near in close)}, or a "
            "torchvision network by its name alone"
        )


def timm_network(name: str, weights: str | Path | None, **options: Any) -> nn.Module:
    """timm's network `name`, made by timm with its `options`.

    Raises UserError for an unknown name or unknown weights, for weights that cannot be fetched, and for a file that
    does not hold this network's state.
    """
    require_timm(name)
    own = name.removeprefix(TIMM)
    if weights is None or Path(weights).suffix in SUFFIXES:
        network = timm().create_model(own, **options)
        if weights is not None:
            load_file_into(network, Path(weights), name)
        return network
    if weights != "DEFAULT":
        raise UserError(f"weights {weights!r}: {name} has DEFAULT, or a .safetensors or .pth file")
    try:
        return timm().create_model(own, pretrained=True, **options)
    # The hub's errors are kinds of OSError and ValueError.
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(
            f"the weights of {name} could not be fetched ({why_not_fetched(error)}); without a network, give a local "
            ".safetensors or .pth file as weights, or `weights: null`"
        ) from None


@lru_cache(maxsize=32)
def require_timm_map(name: str) -> None:
    """Raise UserError where the network has no last map [B, K, s, s] before its pooling. It is made without memory."""
    require_timm(name)
    with torch.device("meta"), torch.no_grad():
        network: Any = timm().create_model(name.removeprefix(TIMM)).eval()
        side = network.default_cfg.get("input_size", (3, AMPLE, AMPLE))[-1]
        shape = network.forward_features(torch.empty(1, 3, side, side)).shape
    if len(shape) != 4 or shape[2] != shape[3]:
        raise UserError(f"backbone {name!r} has no convolutional map at its end; try timm/resnet18 or timm/densenet121")


def expected_input(name: str) -> tuple[tuple[float, ...], tuple[float, ...], int] | None:
    """Mean and standard deviation per channel, and image side, that the published weights of `name` were trained with.

    None where timm does not say. torchvision's have ImageNet's.
    """
    if not name.startswith(TIMM):
        return IMAGENET
    config = timm().get_pretrained_cfg(name.removeprefix(TIMM))
    return (tuple(config.mean), tuple(config.std), config.input_size[-1]) if config else None
