"""LeNets of different widths as one function: each parameter stacked over members, padded with zeros to the widest.

Letters: P members of a stack, B samples, S image side, F filters, L numbers in a member's row, N images.
No masks are needed. A padded unit has neither weights nor bias, so it gives relu(0) = 0, where relu passes no gradient:
its own weights get none from behind, and those that read it none from its output. Every update of a zero parameter by a
zero gradient, with state zero, is zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from moe_dist.models.lenet import LeNet, LeNetWidths

Shapes = dict[str, torch.Size]
"""Parameters of a LeNet by name, in the order of its state_dict."""


def shapes(widths: LeNetWidths, outputs: int, image_size: int) -> Shapes:
    """The parameters of a LeNet of these widths. Raises UserError where the image is too small for one."""
    with torch.device("meta"):
        return {name: value.shape for name, value in LeNet(widths, outputs, image_size).state_dict().items()}


def widest(widths: Sequence[LeNetWidths]) -> LeNetWidths:
    """The widths that every one of `widths` fits into."""
    return LeNetWidths(*(max(getattr(each, name) for each in widths) for name in ("conv1", "conv2", "fc1", "fc2")))


def pack(weights: Sequence[Mapping[str, Tensor]], padded: Shapes, dtype: torch.dtype) -> Tensor:
    """Members' weights, by name, as rows [P, L] of `padded` shapes; what a member lacks is 0.

    A flattened map keeps its order when filters are added behind it, so the first linear layer is padded like the rest.
    """
    rows = torch.zeros(len(weights), row_length(padded), dtype=dtype)
    for member, parameters in enumerate(weights):
        for name, place in unpacked(rows[member : member + 1], padded).items():
            value = parameters[name]
            place[0][tuple(slice(size) for size in value.shape)] = value.to(rows)
    return rows


def unpacked(rows: Tensor, padded: Shapes) -> dict[str, Tensor]:
    """Views of rows [P, L] as stacked parameters [P, ...], by name."""
    starts, views = 0, {}
    for name, shape in padded.items():
        stop = starts + shape.numel()
        views[name] = rows[:, starts:stop].unflatten(1, shape)
        starts = stop
    return views


def row_length(padded: Shapes) -> int:
    """L: the numbers in a member's row."""
    return sum(shape.numel() for shape in padded.values())


def stacked_logits(parameters: Sequence[Tensor], images: Tensor) -> Tensor:
    """Logits [P, B, outputs] of every member.

    parameters: stacked [P, ...], in the order of LeNet's; images [B, P * 3, S, S], every member's own side by side, or
    [B, 3, S, S], the same for all.
    """
    members = len(parameters[0])
    # Channels last: on a CPU a LeNet's max-pooling is then several times as fast, for it runs along the channels.
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
    return hidden


def _unfolded_convolution(images: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """conv2d(images, weight, bias, groups=groups) as one batched matrix product over groups.

    images [B, G * C, S, S], weight [G * F, C, k, k] -> [B, G * F, s, s]. For GPUs: one product for all groups, in full
    float32 precision, where a convolution may round to TF32.
    """
    kernel = weight.shape[-1]
    side = images.shape[-1] - kernel + 1
    windows = functional.unfold(images, kernel).unflatten(1, (groups, -1))  # [B, G, C k k, s s]
    windows = windows.permute(1, 2, 0, 3).flatten(2)
    maps = torch.bmm(weight.flatten(1).unflatten(0, (groups, -1)), windows)  # [G, F, B s s]
    maps = maps.unflatten(2, (len(images), side, side)).permute(2, 0, 1, 3, 4).flatten(1, 2)
    return maps + bias[:, None, None]


def cut(stacked: Mapping[str, Tensor], row: int, own: Shapes) -> dict[str, Tensor]:
    """Member `row`'s parameters, without their padding, as copies by name."""
    return {
        name: stacked[name][row][tuple(slice(size) for size in shape)].detach().clone() for name, shape in own.items()
    }
