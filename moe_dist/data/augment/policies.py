"""Published policies of augmentation (AutoAugment, RandAugment) on whole batches of uint8 images.

Letters: B images, S their side, V variants, A alternatives of O operations each (AutoAugment's sub-policies; for
RandAugment, each operation is an alternative).

The operations, their magnitudes and what they compute are torchvision's; the random numbers are the caller's, and an
image gets the same pixels in any batch. A *variant* is an operation at a magnitude.

1. An operation that only moves pixels, or only looks each one up, does the same to every image: torchvision's kernel is
   run once, on the pixels' numbers or on the values 0 to 255, and the result serves whole batches of variants.
2. Every other operation depends on the image: torchvision's kernel is called once for all images of a variant.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from moe_dist.settings.augment import MOST_RANDAUGMENT_OPERATIONS, AugmentConfig
from moe_dist.vision import torchvision

POLICY_DRAWS = 1 + 2 * MOST_RANDAUGMENT_OPERATIONS
"""Random numbers of an image: its alternative; then for every operation whether (or which), and its sign."""
FILL = 128
"""Grey level of what an operation brings in from outside, as in AutoAugment's own code; torchvision's default is 0."""

_MOVES = frozenset({"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"})
_LOOKUPS = frozenset({"Brightness", "Posterize", "Solarize", "Invert"})
_AUTOAUGMENT_BINS, _RANDAUGMENT_BINS = 10, 31
_NOTHING, _MOVE, _LOOKUP, _KERNEL = range(4)

Variant = tuple[str, float]
"""An operation by torchvision's name, and its signed magnitude."""
_IDENTITY: Variant = ("Identity", 0.0)


def apply_policy(images: Tensor, config: AugmentConfig, draws: np.ndarray) -> Tensor:
    """The images [B, 3, S, S] uint8 after the operations that `config.policy` and the random numbers give them.

    images [B, 3, S, S] uint8; draws [B, POLICY_DRAWS] float64 in [0, 1).
    """
    side = images.shape[-1]
    if config.policy == "randaugment":
        policy = _randaugment(config.randaugment_magnitude, side)
        chosen = _choose_operations(policy, draws, config.randaugment_operations)
    else:
        policy = _autoaugment(str(config.policy).removeprefix("autoaugment_"), side)
        chosen = _choose_sub_policy(policy, draws)
    for variants in chosen.T:
        images = _changed(images, policy.variants, variants)
    return images


@dataclass(frozen=True)
class _Policy:
    """A published policy, its operations numbered.

    variants [V]: sorted by kind, the first of which does nothing; sequences [A, O, 2]: the variants of positive and of
    negative sign of each operation; chances [A, O]: how probable it is that the operation is done at all.
    """

    variants: tuple[Variant, ...]
    sequences: np.ndarray
    chances: np.ndarray


def _choose_sub_policy(policy: _Policy, draws: np.ndarray) -> np.ndarray:
    """AutoAugment's choice, variants [B, O]: one sub-policy for an image, each operation of it by its own chance."""
    row = np.floor(draws[:, 0] * len(policy.sequences)).astype(np.int64)
    done = draws[:, 1:5:2] < policy.chances[row]
    negative = (draws[:, 2:5:2] < 0.5).astype(np.int64)
    return np.where(done, np.take_along_axis(policy.sequences[row], negative[..., None], axis=2)[..., 0], 0)


def _choose_operations(policy: _Policy, draws: np.ndarray, operations: int) -> np.ndarray:
    """RandAugment's choice, variants [B, operations]: each operation of an image is any of the A."""
    which, negative = draws[:, 1::2][:, :operations], draws[:, 2::2][:, :operations] < 0.5
    row = np.floor(which * len(policy.sequences)).astype(np.int64)
    return policy.sequences[row, 0, negative.astype(np.int64)]


@lru_cache
def _autoaugment(dataset: str, side: int) -> _Policy:
    """AutoAugment's policy for a dataset, with the magnitudes of images of `side` pixels."""
    transforms = torchvision().transforms.v2
    source = transforms.AutoAugment(transforms.AutoAugmentPolicy(dataset))
    table = [
        [(name, _magnitude(source, name, level, _AUTOAUGMENT_BINS, side)) for name, _, level in sub_policy]
        for sub_policy in source._policies
    ]
    return _numbered(source, table, np.array([[chance for _, chance, _ in sub] for sub in source._policies]))


@lru_cache
def _randaugment(magnitude: int, side: int) -> _Policy:
    """RandAugment's operations at a magnitude, for images of `side` pixels."""
    source = torchvision().transforms.v2.RandAugment(num_magnitude_bins=_RANDAUGMENT_BINS)
    names = source._AUGMENTATION_SPACE
    table = [[(name, _magnitude(source, name, magnitude, _RANDAUGMENT_BINS, side))] for name in names]
    return _numbered(source, table, np.ones((len(table), 1)))


def _magnitude(source: Any, name: str, level: int | None, bins: int, side: int) -> float:
    """The magnitude of an operation at `level` of torchvision's scale of `bins` steps; 0 where it has none."""
    magnitudes = source._AUGMENTATION_SPACE[name][0](bins, side, side)
    return 0.0 if magnitudes is None else float(magnitudes[level])


def _numbered(source: Any, table: list[list[Variant]], chances: np.ndarray) -> _Policy:
    """The policy of the operations and magnitudes `table` [A, O], with variants of both signs where there is a sign."""
    signs = {name: (1, -1 if signed else 1) for name, (_, signed) in source._AUGMENTATION_SPACE.items()}
    both = [[[(name, sign * level) for sign in signs[name]] for name, level in row] for row in table]
    distinct = {variant for row in both for pair in row for variant in pair} | {_IDENTITY}
    variants = sorted(distinct, key=lambda variant: (_kind(variant[0]), variant))
    sequences = [[[variants.index(variant) for variant in pair] for pair in row] for row in both]
    return _Policy(tuple(variants), np.array(sequences), chances)


def _changed(images: Tensor, variants: tuple[Variant, ...], chosen: np.ndarray) -> Tensor:
    """Each of `images` [B, 3, S, S] uint8 after the one of `variants` [V] whose number is in `chosen` [B].

    Sorted by variant, the images of each are a slice, which is cheaper than to pick them out and put them back.
    """
    sources, tables, (nothing, move, lookup) = _prepared(variants, images.shape[-1], images.device)
    order = np.argsort(chosen, kind="stable")
    ordered = chosen[order]
    changed = images.index_select(0, torch.from_numpy(order).to(images.device))
    moves, lookups = (slice(*np.searchsorted(ordered, ends)) for ends in ((nothing, move), (move, lookup)))
    if moves.start < moves.stop:
        source = sources[torch.from_numpy(ordered[moves] - nothing).to(images.device)]
        padded = functional.pad(changed[moves].flatten(2), (0, 1), value=FILL)
        changed[moves] = padded.gather(2, source[:, None].expand(-1, 3, -1)).view_as(changed[moves])
    if lookups.start < lookups.stop:
        table = tables[torch.from_numpy(ordered[lookups] - move).to(images.device)]
        changed[lookups] = table.gather(1, changed[lookups].flatten(1).long()).view_as(changed[lookups])
    for variant in np.unique(ordered[np.searchsorted(ordered, lookup) :]):
        rows = slice(*np.searchsorted(ordered, (variant, variant + 1)))
        changed[rows] = _kernel(changed[rows], variants[variant], FILL)
    return changed.index_select(0, torch.from_numpy(np.argsort(order)).to(images.device))


@lru_cache
def _prepared(
    variants: tuple[Variant, ...], side: int, device: torch.device
) -> tuple[Tensor, Tensor, tuple[int, int, int]]:
    """Tensors that are computed once and serve all batches: (sources, tables, ends).

    sources [moves, S S]: the place in the image from which a move takes each pixel, S S for the grey one behind the
    last; tables [lookups, 256]: what a look-up makes of each value; ends: the numbers of variants before which
    those that do nothing, the moves and the look-ups end in `variants`, which are sorted by kind.
    """
    kinds = [_kind(name) for name, _ in variants]
    assert kinds == sorted(kinds)
    nothing, move, lookup = (bisect_right(kinds, kind) for kind in (_NOTHING, _MOVE, _LOOKUP))

    def made_of(ramp: Tensor, some: Sequence[Variant], fill: int) -> Tensor:
        return torch.stack([_kernel(ramp, variant, fill).flatten() for variant in some] or [ramp.flatten()])

    numbers = torch.arange(side * side, dtype=torch.float32).view(1, 1, side, side)
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    sources = made_of(numbers, variants[nothing:move], side * side).long().to(device)
    return sources, made_of(levels, variants[move:lookup], FILL).to(device), (nothing, move, lookup)


def _kind(name: str) -> int:
    """The kind of an operation: nothing, a move, a look-up, or one that torchvision's kernel does."""
    if name == "Identity":
        return _NOTHING
    return _MOVE if name in _MOVES else _LOOKUP if name in _LOOKUPS else _KERNEL


@cache
def _interpreter() -> Any:
    """A policy of torchvision, for what all of them share: they run an operation by its name."""
    return torchvision().transforms.v2.RandAugment()


def _kernel(images: Tensor, variant: Variant, fill: int) -> Tensor:
    """The operation on `images` [B, 3, S, S] (or a ramp of one channel): torchvision's own, except for Sharpness."""
    name, magnitude = variant
    if name == "Sharpness":
        return _sharpen(images, 1 + magnitude)
    nearest = torchvision().transforms.InterpolationMode.NEAREST
    return _interpreter()._apply_image_or_video_transform(images, *variant, nearest, {torch.Tensor: float(fill)})


def _sharpen(images: Tensor, factor: float) -> Tensor:
    """Bit for bit torchvision's adjust_sharpness of `images` [B, 3, S, S] uint8, at a quarter of its time on a CPU.

    The nine neighbours, the middle one five times, are added up as they are: their sum is an integer, so that sum / 13
    is never near a half and rounds as torchvision's convolution does, whatever order (or TF32) that one adds in.
    """
    changed = images.float()
    inner = changed[:, :, 1:-1, 1:-1]
    rows = changed[..., :-2] + changed[..., 1:-1] + changed[..., 2:]
    blurred = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    blurred.add_(inner, alpha=4).mul_(1 / 13).round_()
    inner.add_(blurred.sub_(inner), alpha=1 - factor)
    return changed.clamp_(0, 255).to(torch.uint8)
