"""The estimate of a bank's memory, against what autograd keeps and what the bank holds."""

import numpy as np
import torch
from alone import SIDE, mixed_members, pictures

from moe_dist.bank.bank import CPU_STACK, Bank
from moe_dist.bank.batches import Lesson
from moe_dist.bank.memory import memory_bytes


def test_estimate_is_of_the_size_of_what_a_step_keeps():
    """At least what the backward pass and the rows need at once, and at most three times that."""
    members = mixed_members(1)
    images = pictures(torch.float32)
    bank = Bank(members, SIDE)
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    size = members[0].batch_size
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        bank.train_epoch({0: Lesson(np.arange(size), np.zeros(size, np.float32))}, lambda samples: images[samples])
    needed = sum(saved.values())
    assert needed <= memory_bytes(members, SIDE) <= 3 * needed


def test_state_grows_with_members_and_a_step_does_not():
    """Adam's row is kept three times: its share of the estimate grows by exactly that, once a stack is full."""
    member = mixed_members(3)[2]
    row = 4 * sum(value.numel() for value in member.weights.values())
    full = CPU_STACK.images // member.batch_size
    one, two, three = (memory_bytes([member] * stacks * full, SIDE) for stacks in (1, 2, 3))
    assert member.optimiser.kind == "adam"
    assert two - one == three - two == 3 * row * full


def test_double_precision_takes_twice_as_much_and_a_gpu_more():
    members = mixed_members(4)
    single = memory_bytes(members, SIDE)
    assert memory_bytes(members, SIDE, dtype=torch.float64) == 2 * single
    assert memory_bytes(members, SIDE, device="cuda") > single
