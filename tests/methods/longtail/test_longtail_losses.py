"""methods/longtail/losses.py against the loops of tests/reference/longtail.py in float64, by hand and at the limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from moe_dist.methods.longtail import losses
from tests.reference import icl
from tests.reference import longtail as reference

EXPERTS = [1, 2, 3, 5]
COUNTS = [500, 50, 7, 1]


def tensor(values: object) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values))


def batch(experts: int, one_class: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Logits [7, experts, 4] and labels [7], with class 3 absent or class 2 alone."""
    random = np.random.default_rng(experts)
    return random.normal(0, 2, (7, experts, 4)), np.full(7, 2) if one_class else random.integers(0, 3, 7)


def same(ours: torch.Tensor, expected: object) -> None:
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("one_class", [False, True])
@pytest.mark.parametrize("experts", EXPERTS)
class TestFollowsTheReference:
    def test_cross_entropies(self, experts: int, one_class: bool) -> None:
        logits, labels = batch(experts, one_class)
        same(losses.cross_entropies(tensor(logits), tensor(labels)), icl.cross_entropies(logits, labels))

    @pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
    def test_focal(self, experts: int, one_class: bool, gamma: float) -> None:
        logits, labels = batch(experts, one_class)
        same(losses.focal(tensor(logits), tensor(labels), gamma), reference.focal(logits, labels, gamma))

    @pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
    def test_balanced_softmax(self, experts: int, one_class: bool, tau: float) -> None:
        logits, labels = batch(experts, one_class)
        ours = losses.balanced_softmax(tensor(logits), tensor(labels), tau * tensor(np.log(COUNTS)))
        same(ours, reference.balanced_softmax(logits, labels, COUNTS, tau))

    def test_ldam(self, experts: int, one_class: bool) -> None:
        logits, labels = batch(experts, one_class)
        ours = losses.ldam(tensor(logits), tensor(labels), 3 * losses.margins(tensor(COUNTS).double(), 0.5))
        expected = [3 * margin for margin in reference.margins(COUNTS, 0.5)]
        same(ours, reference.ldam(logits, labels, expected))

    def test_ride(self, experts: int, one_class: bool) -> None:
        logits, _ = batch(experts, one_class)
        temperatures = losses.ride_temperatures(tensor(COUNTS).double(), 1.5, 0.3)
        expected = reference.ride_temperatures(COUNTS, 1.5, 0.3)
        same(losses.ride_diversity(tensor(logits), temperatures), reference.ride_diversity(logits, expected))

    def test_shike(self, experts: int, one_class: bool) -> None:
        logits, labels = batch(experts, one_class)
        same(losses.mutual_divergence(tensor(logits)), reference.mutual_divergence(logits))
        same(losses.hard_negatives(tensor(logits), tensor(labels)), reference.hard_negatives(logits, labels))

    def test_balpoe(self, experts: int, one_class: bool) -> None:
        logits, labels = batch(experts, one_class)
        lambdas = {1: [0.0], 2: [1.5, -1.5], 3: [1.5, 0, -1.5], 5: [1.5, 0.75, 0, -0.75, -1.5]}[experts]
        biases = losses.target_biases(tensor(COUNTS).double(), 1.5, experts)
        ours = losses.balanced_softmax(tensor(logits), tensor(labels), biases)
        np.testing.assert_allclose(ours.numpy(), reference.balpoe(logits, labels, COUNTS, lambdas), rtol=1e-6)


def one(*logits: float) -> torch.Tensor:
    """The logits of one sample and one expert."""
    return torch.tensor([[logits]], dtype=torch.float64)


def test_focal_by_hand() -> None:
    """p_y = 3/4: (1/4)^2 * log(4/3)."""
    assert float(losses.focal(one(math.log(3), 0), torch.tensor([0]), 2)) == pytest.approx(math.log(4 / 3) / 16)


def test_balanced_softmax_by_hand() -> None:
    """z = (0, 0), counts 9 and 1, label 1: -log(1 / (9 + 1))."""
    loss = losses.balanced_softmax(one(0, 0), torch.tensor([1]), torch.log(torch.tensor([9.0, 1.0])))
    assert float(loss) == pytest.approx(math.log(10))


def test_margins_and_ldam_by_hand() -> None:
    """16^(-1/4) = 1/2 and 1^(-1/4) = 1: margins 1/4 and 1/2. With z = (log 3, 0) and margin log 3: -log(1/2)."""
    assert losses.margins(torch.tensor([16.0, 1.0]), 0.5).tolist() == [0.25, 0.5]
    lowered = losses.ldam(one(math.log(3), 0), torch.tensor([0]), torch.tensor([math.log(3), 0.0]).double())
    assert float(lowered) == pytest.approx(math.log(2))


def test_effective_weights_by_hand() -> None:
    """beta = 1/2: two samples are 1 + 1/2 = 3/2, one is 1: weights 2/3 and 1, times 2 / (5/3): 4/5 and 6/5."""
    assert losses.effective_weights(torch.tensor([2.0, 1.0]), 0.5).tolist() == pytest.approx([0.8, 1.2])


def test_effective_weights_of_thousands_follow_the_reference() -> None:
    counts = [5000, 400, 3, 1]
    ours = losses.effective_weights(torch.tensor(counts).float(), 0.9999)
    assert ours.tolist() == pytest.approx(reference.effective_weights(counts, 0.9999), rel=1e-6)


def test_ride_temperatures_by_hand() -> None:
    """Shares 3/4 and 1/4 of 2 classes, factor 1/2: 2 * 3/4 / 2 + 1/2 = 5/4 and 3/4, divided by 5/4: 1 and 3/5."""
    assert losses.ride_temperatures(torch.tensor([3.0, 1.0]), 1.0, 0.5).tolist() == pytest.approx([1, 0.6])


def test_ride_diversity_by_hand() -> None:
    """Experts (log 3, 0) and (-log 3, 0): the mean is even; KL of (1/2, 1/2) to (3/4, 1/4) is log(4/3) / 2, twice."""
    logits = torch.cat([one(math.log(3), 0), one(-math.log(3), 0)], 1)
    assert float(losses.ride_diversity(logits, torch.ones(2))) == pytest.approx(math.log(4 / 3))


def test_the_mean_that_ride_leaves_has_no_gradient() -> None:
    """By hand: the derivative of KL(q || p) by p's logits is p - q; experts at (log 3, 0) and (-log 3, 0), q even."""
    logits = torch.cat([one(math.log(3), 0), one(-math.log(3), 0)], 1).requires_grad_()
    losses.ride_diversity(logits, torch.ones(2)).sum().backward()
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx([0.25, -0.25, -0.25, 0.25])


def test_hard_negatives_by_hand() -> None:
    """Label 0. Mean logits of 1 and 2: log 2 and log(3)/2, so 1 is hardest and 2 gets its maximum, log 3.

    Teacher: 2 to 3; experts (log 4, 0): 4 to 1, and (0, log 3): 1 to 3.
    """
    logits = torch.cat([one(9, math.log(4), 0), one(-9, 0, math.log(3))], 1)
    expected = sum(0.4 * math.log(0.4 / p) + 0.6 * math.log(0.6 / (1 - p)) for p in (0.8, 0.25))
    assert float(losses.hard_negatives(logits, torch.tensor([0]))) == pytest.approx(expected)


def test_target_biases_by_hand() -> None:
    """lambda = 1, 0, -1: no, one and two times log n_c."""
    biases = losses.target_biases(torch.tensor([math.e**2, 1.0]), 1.0, 3)
    assert biases.tolist() == [pytest.approx(row) for row in ([0, 0], [2, 0], [4, 0])]


EVEN = torch.full((4,), 7.0, dtype=torch.float64)
LOGITS, LABELS = (tensor(values) for values in batch(3))
PLAIN = losses.cross_entropies(LOGITS, LABELS)


def test_even_counts_leave_the_cross_entropy() -> None:
    torch.testing.assert_close(losses.balanced_softmax(LOGITS, LABELS, EVEN.log()), PLAIN)
    biases = losses.target_biases(EVEN, 1.0, 3)
    torch.testing.assert_close(losses.balanced_softmax(LOGITS, LABELS, biases), PLAIN)
    assert losses.effective_weights(EVEN, 0.9999).tolist() == pytest.approx([1] * 4)
    assert losses.margins(EVEN, 0.5).tolist() == [0.5] * 4
    assert losses.ride_temperatures(EVEN, 2.0, 0.05).tolist() == pytest.approx([2] * 4)


def test_settings_that_leave_the_cross_entropy() -> None:
    torch.testing.assert_close(losses.focal(LOGITS, LABELS, 0.0), PLAIN)
    torch.testing.assert_close(losses.ldam(LOGITS, LABELS, torch.zeros(4)), PLAIN)
    torch.testing.assert_close(losses.balanced_softmax(LOGITS, LABELS, torch.zeros(4)), PLAIN)


def test_one_expert_or_experts_that_agree_differ_from_nobody() -> None:
    agreeing = LOGITS[:, :1].expand(-1, 3, -1)
    for logits in (LOGITS[:, :1], agreeing):
        for loss in (
            losses.ride_diversity(logits, torch.ones(4)),
            losses.mutual_divergence(logits),
            losses.hard_negatives(logits, LABELS),
        ):
            assert loss.tolist() == pytest.approx([0] * 7, abs=1e-12)


def test_with_two_classes_there_is_no_negative_to_choose() -> None:
    two = losses.hard_negatives(torch.randn(4, 3, 2).double(), torch.tensor([0, 1, 1, 0]))
    assert two.tolist() == pytest.approx([0] * 4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_a_certain_sample_has_finite_gradients(gamma: float) -> None:
    """In float32 its cross-entropy is exactly 0."""
    logits = torch.tensor([[[60.0, -60.0]]], requires_grad=True)
    losses.focal(logits, torch.tensor([0]), gamma).sum().backward()
    assert logits.grad is not None and logits.grad.tolist() == [[[0, 0]]]


def test_hard_negatives_have_finite_gradients_that_leave_the_label_alone() -> None:
    logits = (30 * torch.randn(5, 3, 4)).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 3])
    losses.hard_negatives(logits, labels).sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert (logits.grad[torch.arange(5), :, labels] == 0).all() and logits.grad.abs().sum() > 0
