"""The bytes that ranks would exchange for a method's experts, from a forward pass in this process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.methods.base import Method
from moe_dist.models.experts import Experts
from moe_dist.parallel.placement import exchanged_bytes


class Call(NamedTuple):
    """Numbers of a sample: inputs of all experts together, outputs of each. gradient: whether inputs have one.

    summed: a rank adds up its experts' outputs before it sends them.
    """

    inputs: int
    outputs: list[int]
    gradient: bool
    summed: bool


class CountedExperts(Experts):
    """Experts that note what goes to them and comes back, in `calls`."""

    calls: tuple[Call, ...] = ()

    def forward(self, *inputs: Tensor) -> list[Any]:
        """As Experts."""
        outputs = super().forward(*inputs)
        self._note(inputs, [_numbers(output) for output in outputs], summed=False)
        return outputs

    def weighted_sum(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """As Experts."""
        output = super().weighted_sum(inputs, weights)
        self._note((inputs, weights), [_numbers(output)], summed=True)
        return output

    def _note(self, inputs: tuple[Tensor, ...], outputs: list[int], summed: bool) -> None:
        gradient = any(each.requires_grad for each in inputs)
        self.calls = (*self.calls, Call(sum(map(_numbers, inputs)), outputs, gradient, summed))


def bytes_between_ranks(method: Method, seed: int, ranks: int, samples: int) -> int:
    """What an expert-parallel group of `ranks` moves in a step over `samples` samples, in fp32."""
    network = method.build(replace(IN_ONE_PROCESS, experts=CountedExperts), {}, seed).eval()
    side = method.info.image_size
    method.predict(network, torch.rand(1, 3, side, side))
    return sum(bytes_of(call, ranks, samples) for call in calls_of(network))


def calls_of(network: nn.Module) -> list[Call]:
    """What all counted experts of a network noted."""
    return [call for part in network.modules() if isinstance(part, CountedExperts) for call in part.calls]


def bytes_of(call: Call, ranks: int, samples: int) -> int:
    """What a group of `ranks` moves for one call of its experts in a step over `samples` samples, in fp32."""
    outputs = call.outputs * ranks if call.summed else call.outputs
    return exchanged_bytes(ranks, samples, call.inputs, outputs, input_gradient=call.gradient)


def _numbers(output: Any) -> int:
    """Of one sample; output: a tensor [B, ...], or several."""
    tensors = (output,) if isinstance(output, Tensor) else output
    return sum(tensor[0].numel() for tensor in tensors)
