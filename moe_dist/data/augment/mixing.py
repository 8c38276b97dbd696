"""MixUp (Zhang et al. 2018) and CutMix (Yun et al. 2019): every image joined with its partner of the same global batch.

The partner is the image half a batch further on in the epoch's order (order.py), with the changes it has in its own
place. Who it is depends on no number of ranks; where half the batch is a multiple of them, every rank has its images'
partners itself, otherwise it loads them too.
Letters: B images, S their side in pixels, L images loaded.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from moe_dist.settings.augment import AugmentConfig

MIX_DRAWS = 4
"""Random numbers of an image's mixing: which of the two, how much, and where the rectangle's centre is (x, y)."""


def mixes(config: AugmentConfig) -> bool:
    """Whether images are joined with others, and their labels with them."""
    return bool(config.mixup or config.cutmix)


def with_partners(own: np.ndarray, partners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is to be loaded after `own` [B] so that every partner of `partners` [B] is there; both places in an epoch.

    Returns the further places [F], and where each partner is among `own` and then those [B].
    """
    further = np.setdiff1d(partners, own)
    loaded = np.append(own, further)
    by_place = np.argsort(loaded)
    return further, by_place[np.searchsorted(loaded, partners, sorter=by_place)]


def mix(
    images: Tensor, partners: np.ndarray, usable: np.ndarray, config: AugmentConfig, draws: np.ndarray
) -> tuple[Tensor, Tensor]:
    """The first B of `images` [L, 3, S, S] float32 joined with their partners, and each's own share [B] float32.

    partners [B]: where each one's partner is among `images`; usable [L]: False keeps an image that has this partner as
    it is, with share 1; draws [B, MIX_DRAWS] float64 in [0, 1).
    """
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


def _outside_box(share: np.ndarray, centre: np.ndarray, side: int) -> np.ndarray:
    """The pixels outside a square of about (1 - share) of the image, [B, S, S] bool; borders cut the square off.

    share [B]; centre [B, 2]: x and y as fractions of the side. Rounded as torchvision's CutMix rounds.
    """
    half = (0.5 * np.sqrt(1 - share) * side).astype(np.int64)[:, None]
    pixel = np.arange(side)

    def inside(column: int) -> np.ndarray:
        middle = np.floor(centre[:, column, None] * side)
        return (pixel >= middle - half) & (pixel < middle + half)

    return ~(inside(1)[:, :, None] & inside(0)[:, None, :])
