"""Stacked LeNets: packing, padding that stays zero, and convolution as a matrix product."""

from dataclasses import replace

import torch
from alone import SIDE, epoch_data, mixed_members, pictures
from torch.nn import functional

from moe_dist.bank.network import _unfolded_convolution, widest
from moe_dist.bank.stack import Stack
from moe_dist.models.lenet import LeNetWidths


def test_widest_holds_every_member():
    assert widest([LeNetWidths(2, 9, 4, 1), LeNetWidths(3, 5, 7, 1)]) == LeNetWidths(3, 9, 7, 1)


def test_packed_weights_come_back_as_they_were():
    members = [replace(member, batch_size=8) for member in mixed_members(5)]
    stack = Stack(dict(enumerate(members)), SIDE, torch.device("cpu"), torch.float32)
    for id, member in enumerate(members):
        found = stack.weights(id)
        assert found.keys() == member.weights.keys()
        assert all(torch.equal(found[name], value) for name, value in member.weights.items())


def test_padding_stays_zero_through_training():
    """What is not zero in a row is the member's own. Members 0, 4, 8 have SGD, 1, 5, 9 RMSprop, and so on."""
    members = [replace(member, batch_size=8) for member in mixed_members(12)]
    images = pictures(torch.float32)
    for kind in range(4):
        stack = Stack({id: members[id] for id in range(kind, 12, 4)}, SIDE, torch.device("cpu"), torch.float32)
        stack.train_epoch({id: epoch_data(id, 0) for id in stack.ids}, lambda samples: images[samples])
        for id, row in zip(stack.ids, stack._rows):
            own = sum(torch.count_nonzero(value) for value in stack.weights(id).values())
            assert torch.count_nonzero(row) == own > 0


def test_unfolded_convolution_is_the_grouped_one():
    """What GPUs compute, values and gradients, for 3 groups of 2 channels and 4 filters each."""
    generator = torch.Generator().manual_seed(0)
    images, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 6, 9, 9), (12, 2, 5, 5), (12,))
    )
    expected = functional.conv2d(images, weight, bias, groups=3)
    found = _unfolded_convolution(images.contiguous(memory_format=torch.channels_last), weight, bias, groups=3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    wanted = torch.autograd.grad(expected, (images, weight, bias), upstream)
    torch.testing.assert_close(torch.autograd.grad(found, (images, weight, bias), upstream), wanted, rtol=0, atol=1e-11)
