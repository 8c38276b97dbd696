"""Convolutional networks of timm and torchvision by name, cut open at named modules: images -> maps at these taps.

`timm/NAME` is timm's network (with a tag where it has several weights: timm/densenet121.tv_in1k), NAME torchvision's.
A tap is the path of a module that gives one map, such as `features.denseblock2`: what that module gives is what is
tapped. (timm's features_only ends DenseNet after its final norm, `features.norm5`; the paper's last tap,
`features.denseblock4`, is before it.)

Letters in shapes: B samples of a batch, K channels of a map, s map side, S image side.
"""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe_dist.errors import UserError
from moe_dist.models.backbones import backbone, load_file_into, require_known, why_not_fetched
from moe_dist.vision import torchvision  # before timm, which imports it, too

TIMM = "timm/"
SHOWN_TAPS = 12
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224
AMPLE = 224
"""Image side that is not too small for any network."""


class Tapped(nn.Module):
    """Images [B, 3, S, S] -> the maps [B, K, s, s] at the taps, in their order. What lies behind them is left out."""

    def __init__(self, network: nn.Module, taps: Sequence[str]) -> None:
        super().__init__()
        import timm

        self.body: nn.Module = timm.models.create_feature_extractor(network, list(taps))
        self.taps = tuple(taps)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: dict[str, Tensor] = self.body(images)
        return [maps[tap] for tap in self.taps]


def tapped(name: str, taps: Sequence[str], weights: str | Path | None) -> Tapped:
    """The network `name`, with `weights` as `backbone` has them, cut open at `taps`.

    Weights are those of the whole network, its classifier included. Raises UserError as `backbone` and `tap_shapes` do.
    """
    network = _timm(name, weights) if name.startswith(TIMM) else backbone(name, weights)
    return Tapped(network, taps)


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


def expected_input(name: str) -> tuple[tuple[float, ...], tuple[float, ...], int] | None:
    """Mean and standard deviation per channel, and image side, that the published weights of `name` were trained with.

    None where timm does not say. torchvision's have ImageNet's.
    """
    if not name.startswith(TIMM):
        return IMAGENET
    import timm

    config = timm.get_pretrained_cfg(name.removeprefix(TIMM))
    return (tuple(config.mean), tuple(config.std), config.input_size[-1]) if config else None


def require_network(name: str) -> None:
    """Raise UserError, with near names, where neither timm nor torchvision has the convolutional network `name`."""
    if not name.startswith(TIMM):
        require_known(name)
        return
    import timm

    if not timm.is_model(name.removeprefix(TIMM)):
        close = difflib.get_close_matches(name.removeprefix(TIMM), timm.list_models(), n=3) or ["densenet121"]
        raise UserError(
            f"backbone {name!r} is no network of timm's; try {', '.join(TIMM + near for near in close)}, or a "
            "torchvision network by its name alone"
        )


def _timm(name: str, weights: str | Path | None) -> nn.Module:
    require_network(name)
    import timm

    own = name.removeprefix(TIMM)
    if weights is None or Path(weights).suffix in (".safetensors", ".pth"):
        network = timm.create_model(own)
        if weights is not None:
            load_file_into(network, Path(weights), name)
        return network
    if weights != "DEFAULT":
        raise UserError(f"weights {weights!r}: {name} has DEFAULT, or a .safetensors or .pth file")
    try:
        return timm.create_model(own, pretrained=True)
    # The hub's errors are kinds of OSError and ValueError.
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(
            f"the weights of {name} could not be fetched ({why_not_fetched(error)}); without a network, give a local "
            ".safetensors or .pth file as weights, or `weights: null`"
        ) from None


@lru_cache(maxsize=32)
def _maps_of(name: str, image_size: int) -> tuple[frozenset[str], tuple[tuple[str, tuple[int, int]], ...]]:
    """The paths of all modules of a network, and (channels, side) of those that give one map for images of this size.

    Nothing is computed: the network is made without memory. It stops where images become too small.
    """
    require_network(name)
    with torch.device("meta"):
        if name.startswith(TIMM):
            import timm

            network: nn.Module = timm.create_model(name.removeprefix(TIMM))
        else:
            network = torchvision.models.get_model(name, weights=None)
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
