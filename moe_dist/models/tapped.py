"""Convolutional networks of timm and torchvision by name, cut open at named modules: images -> maps at these taps.

A tap is the path of a module that gives one map, such as `features.denseblock2`: what that module gives is what is
tapped. (timm's features_only ends DenseNet after its final norm, `features.norm5`; the paper's last tap,
`features.denseblock4`, is before it.)

Letters in shapes: B samples of a batch, K channels of a map, s map side, S image side.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe_dist.errors import UserError
from moe_dist.models.backbones import backbone, require_network
from moe_dist.models.timm_networks import AMPLE, TIMM
from moe_dist.vision import timm, torchvision

SHOWN_TAPS = 12


class Tapped(nn.Module):
    """Images [B, 3, S, S] -> the maps [B, K, s, s] at the taps, in their order. What lies behind them is left out."""

    def __init__(self, network: nn.Module, taps: Sequence[str]) -> None:
        super().__init__()
        self.body: nn.Module = timm().models.create_feature_extractor(network, list(taps))
        self.taps = tuple(taps)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: dict[str, Tensor] = self.body(images)
        return [maps[tap] for tap in self.taps]


def tapped(name: str, taps: Sequence[str], weights: str | Path | None) -> Tapped:
    """The network `name`, with `weights` as `backbone` has them, cut open at `taps`.

    Weights are those of the whole network, its classifier included. Raises UserError as `backbone` and `tap_shapes` do.
    """
    return Tapped(backbone(name, weights), taps)


def tap_shapes(name: str, taps: Sequence[str], image_size: int) -> list[tuple[int, int]]:
    """(channels K, side s) of the map at each tap for images [B, 3, S, S].

    Raises UserError for an unknown network or tap, a tap that gives no map, and images that are too small for one.
    """
    paths, found = _maps_of(name, image_size)
    shapes = dict(found)
    for tap in taps:
        if tap not in paths:
            raise UserError(f"tap {tap!r}: {name} has no such module; {_offered(tap, shapes)}")
        if tap not in shapes and tap in dict(_maps_of(name, AMPLE)[1]):
            raise UserError(f"tap {tap!r}: images of {image_size} pixels are too small for it; raise data.image_size")
        if tap not in shapes:
            raise UserError(f"tap {tap!r}: this module of {name} gives no single map; {_offered(tap, shapes)}")
    return [shapes[tap] for tap in taps]


@lru_cache(maxsize=32)
def _maps_of(name: str, image_size: int) -> tuple[frozenset[str], tuple[tuple[str, tuple[int, int]], ...]]:
    """The paths of all modules of a network, and (channels, side) of those that give one map for images of this size.

    Nothing is computed: the network is made without memory. It stops where images become too small.
    """
    require_network(name)
    with torch.device("meta"):
        if name.startswith(TIMM):
            network: nn.Module = timm().create_model(name.removeprefix(TIMM))
        else:
            network = torchvision().models.get_model(name, weights=None)
    shapes: dict[str, tuple[int, int]] = {}

    def note(path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] == output.shape[3]:
                shapes[path] = (output.shape[1], output.shape[2])

        return hook

    for path, part in network.named_modules():
        part.register_forward_hook(note(path))
    # Where images are too small it stops with an error; what was reached before has been noted.
    with torch.no_grad(), suppress(RuntimeError, AssertionError, ValueError):
        network.eval()(torch.empty(1, 3, image_size, image_size, device="meta"))
    return frozenset(path for path, _ in network.named_modules() if path), tuple(shapes.items())


def _offered(tap: str, shapes: dict[str, tuple[int, int]]) -> str:
    """Near modules that give maps, and the outermost last one of each shape, in words."""
    outermost: dict[tuple[int, int], str] = {}
    for path, shape in shapes.items():
        if path and path.count(".") <= outermost.get(shape, path).count("."):
            outermost[shape] = path
    near = difflib.get_close_matches(tap, shapes, n=3)
    shown = [*near, *(path for path in reversed(outermost.values()) if path not in near)][:SHOWN_TAPS]
    return "there are " + ", ".join(f"{path} ({shapes[path][0]} x {shapes[path][1]}²)" for path in shown)
