"""How much memory a bank takes, known before it is made, so that a search can choose how many members train at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from moe_dist.bank.bank import divided, stack_limits
from moe_dist.bank.network import row_length, shapes, widest
from moe_dist.bank.optimisers import STATE_ROWS
from moe_dist.bank.stack import Member
from moe_dist.models.lenet import LENET_KERNEL, LeNetWidths

STEP_ROWS = 4
"""Of a step, beside parameters and state: gradients twice, and two temporaries of the update (on a GPU)."""


def memory_bytes(
    members: Sequence[Member],
    image_size: int,
    outputs: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> int:
    """About the bytes on the device that a bank of `members` takes at its largest, images outside a step left out.

    Parameters and optimiser state of all members, and the step of the stack that needs most.
    """
    device, kept, largest_step = torch.device(device), 0, 0
    for ids in divided(members, stack_limits(device)):
        stack = [members[id] for id in ids]
        padded = widest([member.widths for member in stack])
        row = len(stack) * row_length(shapes(padded, outputs, image_size))
        kept += row + row // len(stack) * sum(STATE_ROWS[member.optimiser.kind] for member in stack)
        images = len(stack) * stack[0].batch_size
        step = STEP_ROWS * row + images * _numbers_of_an_image(padded, image_size, device)
        largest_step = max(largest_step, step)
    return (kept + largest_step) * dtype.itemsize


def _numbers_of_an_image(widths: LeNetWidths, image_size: int, device: torch.device) -> int:
    """Numbers held for one image at the start of the backward pass, and the first gradients."""
    numbers, side, channels = 3 * 3 * image_size**2, image_size, 3  # gathered, side by side, channels last
    for filters in (widths.conv1, widths.conv2):
        side = side - LENET_KERNEL + 1
        windows = channels * LENET_KERNEL**2 * side**2 if device.type == "cuda" else 0
        # A map and its gradient, and the pooled map: its value, the maxima's places (of 8 bytes), relu's, a gradient.
        numbers += 2 * windows + 2 * filters * side**2 + 5 * filters * (side // 2) ** 2
        side, channels = side // 2, filters
    return numbers + 4 * (widths.fc1 + widths.fc2)
