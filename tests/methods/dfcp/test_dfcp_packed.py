"""Experts that are computed together give what each gives by itself."""

from __future__ import annotations

import pytest
import torch

from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.methods.dfcp.config import ExpertConfig, GateConfig
from moe_dist.methods.dfcp.network import Mixture, build_mixture
from moe_dist.methods.dfcp.packed import PackedMixture, widths_of
from moe_dist.models.lenet import LeNetWidths

WIDTHS = [(2, 4, 8, 8), (3, 3, 9, 5), (5, 2, 4, 7), (1, 6, 3, 3), (4, 4, 4, 4)]
GATE = GateConfig(filters=(4, 8), hidden=(16,), dropout=0.5)


def mixture(outputs: int) -> Mixture:
    """Five experts, no two of the same widths."""
    experts = [ExpertConfig(conv1=a, conv2=b, fc1=c, fc2=d) for a, b, c, d in WIDTHS]
    return build_mixture(experts, outputs, GATE, 16, IN_ONE_PROCESS.experts, 0, lambda expert: None).eval()  # type: ignore[return-value]


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("packs", [1, 2, 5, 9])
@pytest.mark.parametrize("batch", [1, 7])
def test_packed_experts_give_the_same_logits(outputs: int, packs: int, batch: int) -> None:
    whole, images = mixture(outputs), torch.randn(batch, 3, 16, 16)
    packed = PackedMixture(whole, 16, packs)
    with torch.inference_mode():
        for found, wanted in zip(packed(images), whole(images)):
            assert found.shape == wanted.shape
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_one_image_on_two_threads_gives_the_same_logits() -> None:
    """Parts are then computed beside each other."""
    whole, image, threads = mixture(4), torch.randn(1, 3, 16, 16), torch.get_num_threads()
    packed = PackedMixture(whole, 16)
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            for found, wanted in zip(packed(image), whole(image)):
                torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    finally:
        torch.set_num_threads(threads)


def test_the_state_is_the_mixtures_own() -> None:
    whole = mixture(1)
    packed = PackedMixture(whole, 16)
    assert packed.state_dict().keys() == whole.state_dict().keys()
    assert not packed.training and [widths_of(member) for member in whole.experts.members.values()] == [  # type: ignore[operator, union-attr, arg-type]
        LeNetWidths(*each) for each in WIDTHS
    ]


def test_weights_that_are_trained_on_are_the_ones_that_predict() -> None:
    """With gradients, and after a step without them."""
    packed, images = PackedMixture(mixture(1), 16), torch.randn(2, 3, 16, 16)
    before = packed(images)[1]
    assert before.requires_grad
    before.sum().backward()
    with torch.no_grad():
        for parameter in packed.experts.parameters():
            assert parameter.grad is not None
            parameter -= parameter.grad
        after = packed(images)[1]
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(after, packed(images)[1].detach())


def test_a_packed_mixture_picks_as_the_mixture_does() -> None:
    whole, image = mixture(4), torch.randn(1, 3, 16, 16)
    packed = PackedMixture(whole, 16)
    with torch.inference_mode():
        for found, wanted in zip(packed.picked(image, 2), whole.picked(image, 2)):
            assert torch.equal(found, wanted)
