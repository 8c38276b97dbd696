"""A network's weights in bfloat16, cast all together before a forward pass, where autocast would cast them one by one.

The numbers are autocast's: the same rounding of the same weights, and gradients that are brought back to the weights'
own type as they are. Only the kernels are fewer: one for all weights, and one for all gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Modules whose weights are cast. A linear layer may be one that computes in float32 under autocast, too."""


class WeightCasts:
    """The casts of a network's convolutions."""

    def __init__(self, network: nn.Module) -> None:
        self._modules = [module for module in network.modules() if type(module) in CONVOLUTIONS]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the convolutions use bfloat16 casts of their weights in the block, and their weights after it.

        The casts are attributes of the modules: they go before parameters, which stay where optimisers, checkpoints and
        names look for them.
        """
        casts = _Together.apply(*(module.get_parameter("weight") for module in self._modules)) if self._modules else ()
        for module, cast in zip(self._modules, casts):
            module.__dict__["weight"] = cast
        try:
            yield
        finally:
            for module in self._modules:
                module.__dict__.pop("weight", None)


class _Together(torch.autograd.Function):
    """float32 tensors -> the same in bfloat16, and their gradients back."""

    @staticmethod
    def forward(context: Any, *weights: Tensor) -> tuple[Tensor, ...]:
        context.set_materialize_grads(False)
        return tuple(_cast(weights, torch.bfloat16))

    @staticmethod
    def backward(context: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [gradient for gradient in gradients if gradient is not None]
        cast = iter(_cast(there, torch.float32))
        return tuple(None if gradient is None else next(cast) for gradient in gradients)


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Copies of `tensors` of another type, in their own memory layout."""
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies
