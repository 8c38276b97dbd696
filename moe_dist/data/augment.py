"""Random changes of training images, whole batches at a time, each image from its own random numbers.

Letters: B images, S their side in pixels. Pixels are 0 to 255. The order is: flip, move (shift, rotate, zoom in one
bilinear interpolation), brightness, contrast, cutout. What a move brings in from outside repeats the image's border;
what cutout removes becomes mid-grey.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from moe_dist.config import AugmentConfig

DRAWS = 9
"""Random numbers an image's changes take; their columns do not depend on which changes are switched on."""
_SHIFT_X, _SHIFT_Y, _ROTATE, _ZOOM, _FLIP, _BRIGHTNESS, _CONTRAST, _CUTOUT_X, _CUTOUT_Y = range(DRAWS)
GREY = 127.5


def augment(images: Tensor, config: AugmentConfig, draws: np.ndarray) -> Tensor:
    """The changed images [B, 3, S, S] float32, pixels 0 to 255.

    images [B, 3, S, S] uint8; draws [B, DRAWS] float64 in [0, 1): image i depends on row i alone, whatever the batch.
    """
    if config.flip:
        images = torch.where(_column(draws[:, _FLIP] < 0.5, images), images.flip(-1), images)
    changed = images.to(torch.float32, copy=True)  # what follows changes it in place
    if config.shift or config.rotate or config.zoom:
        changed = _move(changed, config, draws)
    if config.brightness:
        changed.mul_(_column(1 + _between(draws[:, _BRIGHTNESS], config.brightness), images)).clamp_(0, 255)
    if config.contrast:
        factors = _column(1 + _between(draws[:, _CONTRAST], config.contrast), images)
        changed.mul_(factors).add_((1 - factors) * _mean_pixel(images)).clamp_(0, 255)
    if config.cutout:
        changed.masked_fill_(_cut_out(images, config.cutout, draws), GREY)
    return changed


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(pixel / 255 - mean) / std of `images` [B, 3, S, S], uint8 or float32 of 0 to 255; mean, std: per channel."""
    deviation = torch.tensor(std, dtype=torch.float64)
    scale, offset = 1 / (255 * deviation), -torch.tensor(mean, dtype=torch.float64) / deviation
    scale, offset = (value.to(images.device, torch.float32).view(1, 3, 1, 1) for value in (scale, offset))
    return images.to(torch.float32, copy=True).mul_(scale).add_(offset)


def _between(draws: np.ndarray, largest: float) -> np.ndarray:
    """Draws in [0, 1) spread over [-largest, largest)."""
    return (2 * draws - 1) * largest


def _column(values: np.ndarray, images: Tensor) -> Tensor:
    """One value per image as [B, 1, 1, 1] beside `images`; real numbers become float32."""
    tensor = torch.from_numpy(values if values.dtype == bool else values.astype(np.float32))
    return tensor.to(images.device, non_blocking=True).view(-1, 1, 1, 1)


def _move(images: Tensor, config: AugmentConfig, draws: np.ndarray) -> Tensor:
    """Shift, rotate and zoom about the centre.

    An output pixel at p, in coordinates from -1 to 1, takes the input at R(-angle) (p - 2 shift) / zoom.
    The grid is written out element by element: a batched matrix product may round differently at another batch size.
    """
    angle = np.deg2rad(_between(draws[:, _ROTATE], config.rotate))
    factor = _between(draws[:, _ZOOM], config.zoom) + 1
    cosine, sine = (_column(value, images)[..., 0] for value in (np.cos(angle) / factor, np.sin(angle) / factor))
    shift_x, shift_y = (
        _column(2 * _between(draws[:, column], config.shift), images)[..., 0] for column in (_SHIFT_X, _SHIFT_Y)
    )
    side = images.shape[-1]
    centres = (2 * torch.arange(side, device=images.device, dtype=torch.float32) + 1) / side - 1
    x, y = centres.view(1, 1, side) - shift_x, centres.view(1, side, 1) - shift_y
    grid = torch.stack((cosine * x + sine * y, cosine * y - sine * x), dim=-1)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _mean_pixel(images: Tensor) -> Tensor:
    """Each image's mean pixel [B, 1, 1, 1], before it is moved: integers, which no batch size sums differently."""
    total = images.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.int64)
    return (total.to(torch.float64) / images[0].numel()).to(torch.float32)


def _cut_out(images: Tensor, fraction: float, draws: np.ndarray) -> Tensor:
    """Where each image's grey square lies, [B, 1, S, S] bool; its centre may be any pixel: borders cut it off."""
    side = images.shape[-1]
    length = round(fraction * side)
    pixel = torch.arange(side, device=images.device)

    def inside(column: int) -> Tensor:
        first = np.floor(draws[:, column] * side).astype(np.int64) - length // 2
        start = torch.from_numpy(first).to(images.device).view(-1, 1)
        return (pixel >= start) & (pixel < start + length)

    return inside(_CUTOUT_Y)[:, None, :, None] & inside(_CUTOUT_X)[:, None, None, :]
