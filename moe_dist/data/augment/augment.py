"""Random changes of training images, whole batches at a time, each image from its own random numbers.

Letters: B images, S their side in pixels, F images loaded for a batch of B: the batch's own first, then partners.

Pixels are 0 to 255. The order is: crop from the padded image, flip, a published policy (policies.py), move (shift,
rotate, zoom in one bilinear interpolation), brightness, contrast, cutout; then images are joined with others.
Padding is black. What a move brings in from outside repeats the image's border. What cutout removes becomes mid-grey,
which normalisation brings near 0, the value the Cutout paper (DeVries and Taylor 2017) leaves, or black, which the
public code of the long-tail recipes leaves, as it cuts out before it normalises.

MixUp (Zhang et al. 2018) and CutMix (Yun et al. 2019) join an image with its partner: the one half a batch further on
in the epoch's order (order.py), with the changes it has in its own place. Partners do not depend on the number of
ranks. Where half the batch is a multiple of the ranks, every rank has its images' partners; else it loads them, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from moe_dist.data.augment.policies import POLICY_DRAWS, apply_policy
from moe_dist.settings.augment import AugmentConfig

_SHIFT_X, _SHIFT_Y, _ROTATE, _ZOOM, _FLIP, _BRIGHTNESS, _CONTRAST, _CUTOUT_X, _CUTOUT_Y = range(9)
_CROP_X, _CROP_Y, _POLICY = range(9, 12)
DRAWS = _POLICY + POLICY_DRAWS
"""Random numbers that the changes of an image take; their columns do not depend on which changes are switched on."""
MIX_DRAWS = 4
"""Random numbers of an image's mixing: which of the two, how much, and where the rectangle's centre is (x, y)."""
GREY = 127.5


def augment(images: Tensor, config: AugmentConfig, draws: np.ndarray) -> Tensor:
    """The changed images [B, 3, S, S], pixels 0 to 255: uint8 where no change gives fractions of them, else float32.

    images [B, 3, S, S] uint8; draws [B, DRAWS] float64 in [0, 1): image i depends on row i alone, whatever the batch.
    """
    mirrored = (draws[:, _FLIP] < 0.5) & config.flip
    if config.pad_crop:
        images = _crop_and_flip(images, config.pad_crop, mirrored, draws)
    elif config.flip:
        rows = torch.from_numpy(np.flatnonzero(mirrored)).to(images.device)
        images = images.index_copy(0, rows, images.index_select(0, rows).flip(-1))
    if config.policy:
        images = apply_policy(images, config, draws[:, _POLICY:])
    if not (config.shift or config.rotate or config.zoom or config.brightness or config.contrast or config.cutout):
        return images
    changed = images.to(torch.float32, copy=True)  # what follows changes it in place
    if config.shift or config.rotate or config.zoom:
        changed = _move(changed, config, draws)
    if config.brightness:
        changed.mul_(_column(1 + _between(draws[:, _BRIGHTNESS], config.brightness), images)).clamp_(0, 255)
    if config.contrast:
        factors = _column(1 + _between(draws[:, _CONTRAST], config.contrast), images)
        total = images.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.int64)  # integers: the same sum in any batch
        mean = (total.to(torch.float64) / images[0].numel()).to(torch.float32)
        changed.mul_(factors).add_((1 - factors) * mean).clamp_(0, 255)
    if config.cutout:
        removed = _cut_out(images, config.cutout, draws).float()
        changed.mul_(1 - removed)  # exact, and several times faster than masked_fill_
        if config.cutout_fill == "grey":
            changed.add_(GREY * removed)
    return changed


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(pixel / 255 - mean) / std of `images` [B, 3, S, S], uint8 or float32 of 0 to 255; mean, std: per channel.

    Vectors [B, D] are returned as they are.
    """
    if images.dim() == 2:
        return images
    deviation = torch.tensor(std, dtype=torch.float64)
    scale, offset = 1 / (255 * deviation), -torch.tensor(mean, dtype=torch.float64) / deviation
    scale, offset = (value.to(images.device, torch.float32).view(1, 3, 1, 1) for value in (scale, offset))
    return images.to(torch.float32, copy=True).mul_(scale).add_(offset)


def mix(
    images: Tensor, partners: np.ndarray, usable: np.ndarray, config: AugmentConfig, draws: np.ndarray
) -> tuple[Tensor, Tensor]:
    """The first B of `images` [F, 3, S, S] float32 joined with their partners, and each one's own share [B] float32.

    partners [B]: where each one's partner is among `images`; usable [F]: False keeps an image that has this partner as
    it is, with share 1; draws [B, MIX_DRAWS] float64 in [0, 1).
    """
    from scipy.special import betaincinv  # takes half a second to import

    own, other = images[: len(partners)], images[torch.from_numpy(partners).to(images.device)]
    cut = (draws[:, 0] < 0.5) if config.mixup else np.ones(len(draws), bool)
    cut &= config.cutmix > 0
    alpha = np.where(cut, config.cutmix, config.mixup)
    share = np.where(usable[partners], betaincinv(alpha, alpha, draws[:, 1]), 1.0)
    outside = _outside_box(np.where(cut, share, 1.0), draws[:, 2:], images.shape[-1])
    amount = torch.from_numpy(np.where(cut, 1.0, share).astype(np.float32)).view(-1, 1, 1, 1).to(images.device)
    blended = own * amount + other * (1 - amount)
    mixed = torch.where(torch.from_numpy(outside)[:, None].to(images.device), blended, other)
    share = np.where(cut, outside.mean(axis=(1, 2)), share)
    return mixed, torch.from_numpy(share.astype(np.float32)).to(images.device)


def _crop_and_flip(images: Tensor, pixels: int, mirrored: np.ndarray, draws: np.ndarray) -> Tensor:
    """A window of the image's own size from the image with `pixels` black ones on every side; `mirrored` [B] or not.

    Both in one gather: output pixel (r, c) is pixel (top + r, left + c) of the padded image, or (top + r, right - c).
    """
    side = images.shape[-1]
    padded = functional.pad(images, (pixels,) * 4).flatten(2)
    top, left = (np.floor(draws[:, column] * (2 * pixels + 1)).astype(np.int64) for column in (_CROP_Y, _CROP_X))
    corners = np.stack([top, np.where(mirrored, left + side - 1, left), np.where(mirrored, -1, 1)])
    first_row, first_column, step = torch.from_numpy(corners).to(images.device, non_blocking=True)[..., None]
    along = torch.arange(side, device=images.device)
    rows, columns = first_row + along, first_column + step * along  # [B, S]
    source = (rows * (side + 2 * pixels))[:, :, None] + columns[:, None, :]
    return padded.gather(2, source.flatten(1)[:, None].expand(-1, 3, -1)).view_as(images)


def _between(draws: np.ndarray, largest: float) -> np.ndarray:
    """Draws in [0, 1) spread over [-largest, largest)."""
    return (2 * draws - 1) * largest


def _column(values: np.ndarray, images: Tensor) -> Tensor:
    """One value per image as [B, 1, 1, 1] float32 beside `images`."""
    return torch.from_numpy(values.astype(np.float32)).to(images.device, non_blocking=True).view(-1, 1, 1, 1)


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


def _cut_out(images: Tensor, fraction: float, draws: np.ndarray) -> Tensor:
    """Where each image's square lies, [B, 1, S, S] bool; its centre may be any pixel: borders cut it off."""
    side = images.shape[-1]
    length = round(fraction * side)
    first = np.floor(draws[:, (_CUTOUT_Y, _CUTOUT_X)] * side).astype(np.int64) - length // 2
    start_y, start_x = torch.from_numpy(first.T.copy()).to(images.device)[..., None]  # [B, 1] each
    pixel = torch.arange(side, device=images.device)
    rows, columns = ((pixel >= start) & (pixel < start + length) for start in (start_y, start_x))
    return rows[:, None, :, None] & columns[:, None, None, :]


def _outside_box(share: np.ndarray, centre: np.ndarray, side: int) -> np.ndarray:
    """The pixels outside a square of about (1 - share) of the image, [B, S, S] bool; borders cut the square off.

    share [B]; centre [B, 2]: x and y as fractions of the side. Rounded as torchvision's CutMix rounds.
    """
    half = (0.5 * np.sqrt(1 - share) * side).astype(np.int64)[:, None]
    x, y = np.floor(centre.T[..., None] * side)  # [B, 1] each
    pixel = np.arange(side)
    columns, rows = ((pixel >= middle - half) & (pixel < middle + half) for middle in (x, y))
    return ~(rows[:, :, None] & columns[:, None, :])
