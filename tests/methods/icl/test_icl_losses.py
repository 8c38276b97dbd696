"""methods/icl/losses.py against the loops of tests/reference/icl.py in float64, and by hand."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch

from moe_dist.methods.icl import losses
from tests.reference import icl as reference

EXPERTS = [1, 2, 3, 5]


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values))


def distinct_counts(experts: int, classes: int) -> np.ndarray:
    """Confusion matrices [M, C, C] without ties, zero on the diagonal."""
    confusion = np.random.default_rng(1).permutation(experts * classes**2).reshape(experts, classes, classes) + 1.0
    for expert in range(experts):
        np.fill_diagonal(confusion[expert], 0)
    return confusion


@pytest.mark.parametrize("experts", EXPERTS)
def test_diversity_follows_eq_3(experts: int) -> None:
    features = np.random.default_rng(experts).normal(0, 2, (7, experts, 5))
    ours = losses.diversity(tensor(features))
    np.testing.assert_allclose(ours.numpy(), reference.diversity(features), atol=1e-12)
    positive = losses.diversity(tensor(features), "positive")
    np.testing.assert_allclose(positive.numpy(), reference.diversity(features, least=0), atol=1e-12)


def test_positive_cosines_are_the_same_behind_a_relu_and_stop_at_right_angles_elsewhere() -> None:
    features = torch.from_numpy(np.random.default_rng(3).normal(0, 1, (7, 3, 5)))
    behind = features.relu()
    torch.testing.assert_close(losses.diversity(behind, "positive"), losses.diversity(behind))
    opposite = torch.tensor([[[1.0, 0], [-1.0, 0]]], requires_grad=True)
    assert losses.diversity(opposite).item() == -2 and losses.diversity(opposite, "positive").item() == 0


def test_diversity_by_hand() -> None:
    """Two pairs at right angles, one at 60 degrees (cosine 1/2), each counted in both orders: 2 * 1/2."""
    features = torch.tensor([[[2.0, 0, 0], [0, 0, 3.0], [0.5, math.sqrt(0.75), 0]]], dtype=torch.float64)
    torch.testing.assert_close(losses.diversity(features), torch.tensor([1.0], dtype=torch.float64))


def test_features_of_length_zero_have_finite_gradients() -> None:
    features = torch.zeros(2, 3, 4, requires_grad=True)
    losses.diversity(features).sum().backward()
    assert features.grad is not None and features.grad.isfinite().all()


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("negatives", ["sum", "mean"])
@pytest.mark.parametrize("k", [1, 3, 5, 99])
def test_contrast_follows_eq_6(experts: int, k: int, negatives: Literal["sum", "mean"]) -> None:
    """Six classes: k = 5 takes all others, k = 99 has no more to take."""
    random = np.random.default_rng(10 * experts + k)
    features, prototypes = random.normal(0, 1, (9, experts, 4)), random.normal(0, 1, (experts, 6, 4))
    labels, confusion = random.integers(0, 6, 9), distinct_counts(experts, 6)
    ours = losses.contrast(*map(tensor, (features, labels, confusion, prototypes)), k, 0.2, negatives)
    expected = reference.contrast(features, labels, confusion, prototypes, k, 0.2, negatives)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-11)


@pytest.mark.parametrize("negatives", ["sum", "mean"])
def test_contrast_with_fewer_confused_classes_than_k(negatives: Literal["sum", "mean"]) -> None:
    """Class 0 was taken for 2 alone, class 1 for nothing, class 2 for 0 and for 3, which has no prototype yet."""
    random = np.random.default_rng(3)
    features, prototypes = random.normal(0, 1, (6, 2, 4)), random.normal(0, 1, (2, 4, 4))
    prototypes[:, 3] = 0
    labels, confusion = np.array([0, 1, 2, 2, 1, 0]), np.zeros((2, 4, 4))
    confusion[:, 0, 2] = 0.4
    confusion[:, 2, 0], confusion[:, 2, 3] = 0.1, 0.3
    ours = losses.contrast(*map(tensor, (features, labels, confusion, prototypes)), 3, 0.07, negatives).numpy()
    expected = reference.contrast(features, labels, confusion, prototypes, 3, 0.07, negatives)
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    assert ours[1] == ours[4] == 0, "without negatives the fraction is one"
    assert (ours[[0, 2, 3, 5]] > 0).all()


def test_contrast_by_hand() -> None:
    """h lies on the prototype of its class 0 (cosine 1) and at 60 degrees to class 1's (1/2); tau = 1/2.

    The loss is log((e^2 + e^1) / e^2) = log(1 + 1/e). Lengths do not matter.
    """
    features = torch.tensor([[[3.0, 0.0]]], dtype=torch.float64)
    prototypes = torch.tensor([[[0.1, 0.0], [1.0, math.sqrt(3)], [-1.0, 0.0]]], dtype=torch.float64)
    confusion = torch.tensor([[[0.0, 0.9, 0.1], [0, 0, 0], [0, 0, 0]]], dtype=torch.float64)
    loss = losses.contrast(features, torch.tensor([0]), confusion, prototypes, 1, 0.5)
    assert float(loss) == pytest.approx(math.log(1 + 1 / math.e), rel=1e-12)


def test_mean_of_negatives_by_hand() -> None:
    """As above with two confused classes, at cosines 1/2 and -1: (e^1 + e^-2) / 2 beside e^2."""
    features = torch.tensor([[[3.0, 0.0]]], dtype=torch.float64)
    prototypes = torch.tensor([[[0.1, 0.0], [1.0, math.sqrt(3)], [-1.0, 0.0]]], dtype=torch.float64)
    confusion = torch.tensor([[[0.0, 0.9, 0.1], [0, 0, 0], [0, 0, 0]]], dtype=torch.float64)
    loss = losses.contrast(features, torch.tensor([0]), confusion, prototypes, 7, 0.5, "mean")
    assert float(loss) == pytest.approx(math.log(1 + (math.exp(-1) + math.exp(-4)) / 2), rel=1e-12)


def test_gradient_of_contrast_reaches_every_feature() -> None:
    features = torch.randn(3, 2, 4, requires_grad=True)
    prototypes, confusion = torch.randn(2, 5, 4), torch.from_numpy(distinct_counts(2, 5)).float()
    losses.contrast(features, torch.tensor([0, 1, 1]), confusion, prototypes, 3, 0.07).sum().backward()
    assert features.grad is not None and (features.grad.abs().sum(2) > 0).all()


@pytest.mark.parametrize("means", [[2.0], [1.0, 3.0], [0.5, 2.0, 4.0], [0.0, 1.0]])
def test_parallel_loss_and_its_gradient_follow_eq_8_and_9(means: list[float]) -> None:
    epsilon = 1e-3
    own = torch.tensor(means, dtype=torch.float64, requires_grad=True)
    loss = losses.parallel(own, epsilon)
    loss.backward()
    assert loss.item() == pytest.approx(reference.parallel(means, epsilon), rel=1e-12)
    assert own.grad is not None
    np.testing.assert_allclose(own.grad.numpy(), reference.parallel_gradient(means, epsilon), rtol=1e-12)


def test_parallel_loss_by_hand() -> None:
    """1/(1/1 + 1/3) = 3/4; Eq 9: (3/4)^2 / 1 and (3/4)^2 / 9: the better expert has nine times the gradient."""
    own = torch.tensor([1.0, 3.0], dtype=torch.float64, requires_grad=True)
    loss = losses.parallel(own, 0.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.75) and own.grad is not None
    assert own.grad.tolist() == pytest.approx([0.5625, 0.0625])


@pytest.mark.parametrize("experts", [2, 3, 5])
def test_distillation_follows_eq_10_both_ways(experts: int) -> None:
    logits = np.random.default_rng(experts).normal(0, 2, (7, experts, 4))
    ours = losses.distillation(tensor(logits))
    np.testing.assert_allclose(ours.numpy(), reference.distillation(logits), rtol=1e-11)


def test_distillation_by_hand() -> None:
    """p = (1/2, 1/2), q = (1/4, 3/4): KL(p||q) + KL(q||p) = (1/4) log 3, over M (M - 1) = 2."""
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3)]]], dtype=torch.float64)
    assert float(losses.distillation(logits)) == pytest.approx(math.log(3) / 8, rel=1e-12)


def test_experts_that_agree_have_nothing_to_distil() -> None:
    logits = torch.randn(4, 1, 5).expand(4, 3, 5)
    assert losses.distillation(logits).tolist() == [0.0] * 4


def test_the_largest_entries_are_always_k_with_the_class_itself_among_them() -> None:
    """As the released code has it: of class 0's row (5, 2, 0) k = 2 takes 0 and 1, k = 99 all three, met or not.

    By hand, temperature 1, mean over k = 2: the feature is the own prototype, so both it and the first negative have
    exp(1); the second is at a right angle, exp(0). Loss = log(e + (e + 1) / 2) - 1.
    """
    confusion = torch.tensor([[[5.0, 2, 0], [0, 0, 0], [0, 0, 0]]])
    prototypes = torch.tensor([[[1.0, 0], [0, 1], [0, 0]]])
    labels = torch.tensor([0])
    classes, counted = losses.most_confused(confusion, prototypes, labels, 2, "largest")
    assert classes.tolist() == [[[0, 1]]] and counted.all()
    assert losses.most_confused(confusion, prototypes, labels, 99, "largest")[0].shape == (1, 1, 3)
    loss = losses.contrast(torch.tensor([[[2.0, 0]]]), labels, confusion, prototypes, 2, 1.0, "mean", "largest")
    assert loss.item() == pytest.approx(math.log(math.e + (math.e + 1) / 2) - 1, rel=1e-6)
