"""LeNets of different widths as one function: each parameter stacked over members, padded with zeros to the widest.

Letters in shapes: M members, B samples of a batch, K channels of a map, s map side, S image side, F filters, W weights
in a member's row.

Padding needs no masks. A padded unit has zero weights and a zero bias, so its output is relu(0) = 0, where the gradient
of relu is 0 too: the unit's own weights get a zero gradient, and so do the weights that read its output. Every
optimiser here leaves a zero parameter with a zero gradient and a zero state at zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from moe_dist.models.lenet import LeNet, LeNetWidths

Shapes = dict[str, torch.Size]
"""The shapes of a LeNet's parameters by name, in the order of its state_dict."""


def shapes(widths: LeNetWidths, image_size: int, outputs: int = 1) -> Shapes:
    """The parameters' shapes of a LeNet, binary by default. Raises UserError where the image is too small for one."""
    with torch.device("meta"):
        return {name: value.shape for name, value in LeNet(widths, outputs, image_size).state_dict().items()}


def widest(widths: Sequence[LeNetWidths]) -> LeNetWidths:
    """The smallest widths that each of `widths` fits into."""
    return LeNetWidths(*(max(getattr(each, name) for each in widths) for name in ("conv1", "conv2", "fc1", "fc2")))


def pack(weights: Sequence[Mapping[str, Tensor]], padded: Shapes, dtype: torch.dtype) -> Tensor:
    """The members' weights, given by name, as rows [M, W] of `padded` shapes; what a member lacks is 0.

    A flattened map keeps its order when filters are added behind it, so the first linear layer is padded like the rest.
    """
    rows = torch.zeros(len(weights), sum(shape.numel() for shape in padded.values()), dtype=dtype)
    for member, parameters in enumerate(weights):
        for name, padded_value in unpacked(rows[member : member + 1], padded).items():
            value = parameters[name]
            padded_value[0][tuple(slice(size) for size in value.shape)] = value.to(rows)
    return rows


def unpacked(rows: Tensor, padded: Shapes) -> dict[str, Tensor]:
    """Views of rows [M, W] as stacked parameters [M, ...], by name."""
    start, views = 0, {}
    for name, shape in padded.items():
        stop = start + shape.numel()
        views[name] = rows[:, start:stop].unflatten(1, shape)
        start = stop
    return views


def stacked_logits(parameters: Sequence[Tensor], images: Tensor) -> Tensor:
    """Logits [M, B] of every member, or [M, B, outputs] of members with several.

    parameters: stacked [M, ...], in the order of LeNet's; images: [B, M * 3, S, S], every member's own side by side, or
    [B, 3, S, S], the same for all members.
    """
    members = len(parameters[0])
    # Channels last: max-pooling of so few channels is then several times as fast on a CPU.
    maps = images.contiguous(memory_format=torch.channels_last)
    for weight, bias in zip(parameters[0:4:2], parameters[1:4:2]):
        groups = maps.shape[1] // weight.shape[2]
        convolve = _unfolded_convolution if maps.is_cuda else functional.conv2d
        maps = convolve(maps, weight.flatten(0, 1), bias.flatten(), groups=groups)
        maps = functional.relu(functional.max_pool2d(maps, 2))  # relu commutes with the maximum and is cheaper after it
    hidden = maps.unflatten(1, (members, -1)).transpose(0, 1).flatten(2)
    for layer in range(4, len(parameters), 2):
        if layer > 4:
            hidden = functional.relu(hidden)
        weight, bias = parameters[layer : layer + 2]
        hidden = torch.baddbmm(bias[:, None], hidden, weight.transpose(1, 2))
    return hidden.squeeze(2)


def _unfolded_convolution(images: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """conv2d(images, weight, bias, groups=groups) as one batched matrix product over groups.

    images [B, groups * K, S, S], weight [groups * F, K, kernel, kernel] -> [B, groups * F, s, s]. For GPUs: one product
    for all groups, in full float32 precision, where a convolution may round to TF32.
    """
    kernel = weight.shape[-1]
    side = images.shape[-1] - kernel + 1
    windows = functional.unfold(images, kernel).unflatten(1, (groups, -1))  # [B, groups, K kernel kernel, s s]
    windows = windows.permute(1, 2, 0, 3).flatten(2)
    maps = torch.bmm(weight.flatten(1).unflatten(0, (groups, -1)), windows)  # [groups, F, B s s]
    maps = maps.unflatten(2, (len(images), side, side)).permute(2, 0, 1, 3, 4).flatten(1, 2)
    return maps + bias[:, None, None]
