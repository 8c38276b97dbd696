"""Pictures of where experts look: beside each image, the map of every expert for the class that was predicted.

Letters: B images of a batch, E experts, S image side, s map side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from moe_dist.errors import UserError
from moe_dist.evaluate.pictures import grad_cam
from moe_dist.files import whole_file
from moe_dist.plots.style import HEAT
from moe_dist.use.model import TrainedModel

SMALLEST_SIDE = 96
"""Pixels to which smaller images are enlarged, so that one sees something."""
AT_ONCE = 32
"""Images whose maps' gradients are computed together."""
STRENGTH = 0.75
"""How much of the image a map hides where it is largest."""


class Explainer:
    """Writes a picture for each image into `folder`: the image, and beside it every expert's Grad-CAM.

    Raises UserError where the model shows no maps.
    """

    def __init__(self, model: TrainedModel, folder: Path) -> None:
        self._model, self._folder = model, folder
        nothing = model.preprocessing.normalised(model.preprocessing.empty(1).to(model.device))
        if model.preprocessing.vector_size or model.method.expert_maps(model.network, nothing) is None:
            raise UserError(
                f"--explain: {model.method.config.name} shows no maps of where its experts look; leave it out (gate "
                "weights are in every row)"
            )

    def write(self, names: Sequence[str], samples: Tensor, labels: Tensor) -> None:
        """Write the pictures of squares [B, 3, S, S] uint8 for the classes `labels` [B], called as the images are."""
        for start in range(0, len(names), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            maps = self._maps(samples[part], labels[part])
            for name, image, own in zip(names[part], samples[part].numpy(), maps):
                with whole_file(self._folder / picture_name(name), lasting=False) as partial:
                    Image.fromarray(side_by_side(image.transpose(1, 2, 0), own)).save(partial, "png")

    def _maps(self, samples: Tensor, labels: Tensor) -> np.ndarray:
        """The experts' maps [B, E, s, s] of squares [B, 3, S, S]."""
        model = self._model
        shown = model.method.expert_maps(model.network, model.preprocessing.normalised(samples.to(model.device)))
        assert shown is not None
        return grad_cam(shown, labels.to(model.device)).cpu().numpy()


def picture_name(name: str) -> Path:
    """The path of an image's picture: that of the image, below the folder, and .png."""
    parts = [part for part in re.split(r"[/\\:]+", name) if part not in ("", ".", "..")]
    return Path(*parts[:-1], f"{parts[-1]}.png")


def side_by_side(image: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """An image [S, S, 3] and beside it maps [E, s, s] over it, each scaled by its own maximum: [S', (E + 1) S', 3]."""
    times = max(1, -(-SMALLEST_SIDE // len(image)))
    large = image.repeat(times, 0).repeat(times, 1)
    smooth = functional.interpolate(
        torch.from_numpy(maps)[:, None], size=large.shape[:2], mode="bilinear", align_corners=False
    )[:, 0].numpy()
    shares = smooth / np.maximum(smooth.max(axis=(1, 2), keepdims=True), 1e-12)
    colours = matplotlib.colormaps[HEAT](shares)[..., :3] * 255
    weight = STRENGTH * shares[..., None]
    over = (1 - weight) * large + weight * colours
    return np.concatenate([large, *over.round().astype(np.uint8)], axis=1)
