"""Banks: a member is trained as it would be alone, whatever is beside it."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from alone import SIDE, Alone, epoch_data, mixed_members, pictures

from moe_dist.bank.bank import Bank, StackLimits, divide_into_stacks
from moe_dist.bank.batches import EpochData
from moe_dist.bank.network import widest
from moe_dist.errors import UserError
from moe_dist.models.lenet import LeNet

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
STEPS = 50


def train_both(members, dtype, epochs=None, dropped=None):
    """Train a bank and each member alone; yields (bank, alone, members that were trained) after every epoch.

    epochs: of single members; the others have as many as make 50 steps. dropped: members that leave after an epoch.
    """
    images = pictures(dtype)
    bank = Bank(members, SIDE, dtype=dtype)
    alone = [Alone(member, dtype) for member in members]
    last = {id: -(-STEPS // epoch_data(id, 0).steps(member.batch_size)) for id, member in enumerate(members)}
    last |= epochs or {}
    for epoch in range(max(last.values())):
        data = {id: epoch_data(id, epoch) for id in bank.members if epoch < last[id]}
        bank.train_epoch(data, lambda samples: images[samples])
        for id in data:
            alone[id].train_epoch(data[id], images)
        yield bank, alone, list(data)
        bank.drop([id for id, after in (dropped or {}).items() if after == epoch + 1])


def assert_same(bank, alone, members, tolerance):
    """The weights of `members`."""
    for id in members:
        weights = bank.weights(id)
        assert list(weights) == list(alone[id].network.state_dict())
        for name, value in alone[id].network.state_dict().items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_members_are_trained_as_they_would_be_alone(dtype):
    """50 steps: mixed widths, optimisers, rates and batch sizes, ragged numbers of steps and last batches."""
    for state in train_both(mixed_members(12), dtype):
        assert_same(*state, TOLERANCE[dtype])


def test_weight_decay_is_torchs():
    for state in train_both(mixed_members(8, weight_decay=0.05), torch.float64, dict.fromkeys(range(8), 2)):
        assert_same(*state, 1e-9)


def test_members_that_finish_or_are_dropped_leave_the_others_as_they_are():
    """Members 1 and 6 are dropped after the second epoch, 4 and 8 finish after the third, the rest have four."""
    epochs = {id: 3 if id in (4, 8) else 4 for id in range(12)}
    before = {}
    for bank, alone, trained in train_both(mixed_members(12), torch.float64, epochs, {1: 2, 6: 2}):
        assert_same(bank, alone, trained, 1e-9)
        finished = {id: bank.weights(id) for id in (4, 8) if id not in trained}
        assert all(torch.equal(value, before[id][name]) for id in finished for name, value in finished[id].items())
        before = {id: bank.weights(id) for id in bank.members}
    assert bank.members == [0, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert trained == [0, 2, 3, 5, 7, 9, 10, 11]


def test_divergence_stays_with_its_member():
    """Members 0 and 12 have SGD and batches of 8, 13 and 1 RMSprop: of both pairs, one diverges."""
    members = mixed_members(14)
    absurd = members[12].optimiser.model_copy(update={"learning_rate": 1e200})
    members[12] = replace(members[12], optimiser=absurd)
    nan = {name: torch.full_like(value, torch.nan) for name, value in members[13].weights.items()}
    members[13] = replace(members[13], weights=nan)
    for bank, alone, _ in train_both(members, torch.float64, dict.fromkeys(range(14), 2)):
        assert_same(bank, alone, range(12), 1e-9)
    assert bank.diverged() == [12, 13]


def test_logits_of_the_same_images_are_every_members_own():
    members = mixed_members(9)
    images = pictures(torch.float64)
    bank = Bank(members, SIDE, dtype=torch.float64)
    bank.drop([2, 3])
    expected = [Alone(members[id], torch.float64).network(images).squeeze(1) for id in (0, 1, 4, 5, 6, 7, 8)]
    torch.testing.assert_close(bank.logits(images), torch.stack(expected).detach(), rtol=0, atol=1e-12)


def test_members_of_one_data_group_share_their_images_and_are_trained_as_alone():
    """Two groups of seven members of all kinds, in batches of 8; member 1 is dropped, 3 and 10 have fewer epochs."""
    members = [replace(member, batch_size=8, data_group=id // 7) for id, member in enumerate(mixed_members(14))]
    images, asked = pictures(torch.float64), []
    bank = Bank(members, SIDE, dtype=torch.float64)
    alone = [Alone(member, torch.float64) for member in members]

    def images_of(samples):
        asked.append(len(samples))
        return images[samples]

    for epoch in range(10):
        groups = [epoch_data(100 + group, epoch) for group in (0, 1)]
        data = {id: groups[id // 7] for id in bank.members if epoch < 4 or id not in (3, 10)}
        bank.train_epoch(data, images_of)
        for id in data:
            alone[id].train_epoch(data[id], images)
        assert_same(bank, alone, data, 1e-9)
        bank.drop([1])
    assert sum(asked) < 0.6 * sum(len(data[id].samples) for id in data) * 10
    assert max(asked) <= 8


@pytest.mark.parametrize(
    ("same", "shared"),
    [("data_group", lambda each: each.data_group), ("optimiser", lambda each: each.optimiser.kind)],
)
def test_stacks_are_of_one_batch_size_and_data_group_or_optimiser_and_within_their_limits(same, shared):
    members = [replace(member, data_group=id % 3) for id, member in enumerate(mixed_members(60))]
    stacks = divide_into_stacks(members, StackLimits(images=32, padding=1.5, same=same))
    assert sorted(chain(*stacks)) == list(range(60))
    assert max(map(len, stacks)) > 1
    for stack in stacks:
        assert len({members[id].batch_size for id in stack}) == 1
        assert len({shared(members[id]) for id in stack}) == 1
        assert len(stack) * members[stack[0]].batch_size <= 32
        own = [LeNet.multiply_adds(members[id].widths) for id in stack]
        padded = LeNet.multiply_adds(widest([members[id].widths for id in stack]))
        assert len(stack) * padded <= 1.5 * sum(own)
    small = StackLimits(images=4, padding=9.0, same=same)
    assert all(len(stack) == 1 for stack in divide_into_stacks(members, small))


def test_an_image_too_small_for_a_lenet_is_refused():
    with pytest.raises(UserError, match="use 16 or more"):
        Bank(mixed_members(1), image_size=12)


def test_data_for_a_dropped_member_is_a_mistake():
    bank = Bank(mixed_members(2), SIDE)
    bank.drop([1])
    data = EpochData(np.arange(3), np.zeros(3, np.float32))
    with pytest.raises(AssertionError):
        bank.train_epoch({1: data}, lambda samples: torch.zeros(3, 3, 16, 16))
