"""methods/dfcp/losses.py against the loops of tests/reference/dfcp.py, and where plain probabilities break down."""

import math

import numpy as np
import pytest
import torch

from moe_dist.methods.dfcp.losses import (
    class_log_probs,
    combined_loss,
    expert_loss,
    gate_log_weights,
    gate_loss,
    mixture_log_probs,
    mixture_of_softmax_log_probs,
)
from tests.reference import dfcp as reference

CASES = {
    "one expert per class, in order": ([0, 1, 2, 3], 4),
    "one expert per class, shuffled": ([2, 0, 3, 1], 4),
    "two experts of one class": ([0, 1, 1, 2, 0], 3),
    "a class without an expert": ([0, 2, 2], 4),
    "one expert, two classes": ([1], 2),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request):
    """Gate logits and expert logits [7, E] float64, own classes [E], the number of classes."""
    own, classes = CASES[request.param]
    random = np.random.default_rng(3)
    gate, experts = random.normal(0, 2, (2, 7, len(own)))
    return gate, experts, np.array(own), classes


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def test_gate_weights_follow_eq_1_and_sum_to_one(case):
    gate = case[0]
    weights = gate_log_weights(torch.from_numpy(gate)).exp().numpy()
    np.testing.assert_allclose(weights, reference.softmax_gate(gate), rtol=1e-12)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)


def test_class_log_probs_follow_the_reading(case):
    _, experts, own, classes = case
    logits, expert_class = tensors(experts, own)
    ours = class_log_probs(logits, expert_class, classes).exp().numpy()
    for i, row in enumerate(experts):
        for j, logit in enumerate(row):
            expected = reference.binary_expert_distribution(logit, own[j], classes)
            np.testing.assert_allclose(ours[i, j], expected, rtol=1e-12)


@pytest.mark.parametrize("top_k", [None, 1, 2, 99])
def test_mixture_follows_eq_3(case, top_k):
    gate, experts, own, classes = case
    weights = reference.softmax_gate(gate)
    if top_k is not None:
        weights = reference.sparse_gate(weights, top_k)
    expected = reference.binary_mixture(weights, experts, own, classes)
    ours = mixture_log_probs(*tensors(gate, experts, own), classes, top_k)
    np.testing.assert_allclose(ours.numpy(), np.log(expected), rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.exp().sum(dim=1).numpy(), 1, rtol=1e-12)


@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_mixture_of_softmax_experts_follows_eq_3(top_k):
    random = np.random.default_rng(4)
    gate, experts = random.normal(0, 2, (5, 3)), random.normal(0, 2, (5, 3, 4))
    weights = reference.softmax_gate(gate)
    if top_k is not None:
        weights = reference.sparse_gate(weights, top_k)
    ours = mixture_of_softmax_log_probs(*tensors(gate, experts), top_k)
    np.testing.assert_allclose(ours.numpy(), np.log(reference.softmax_mixture(weights, experts)), rtol=0, atol=1e-12)


def test_losses_follow_eq_14_to_16(case):
    gate, experts, own, classes = case
    random = np.random.default_rng(5)
    labels, expert = random.integers(0, classes, 7), random.integers(0, len(own), 7)
    weights = reference.softmax_gate(gate)
    log_probs = mixture_log_probs(*tensors(gate, experts, own), classes)
    expected = reference.combined_loss(reference.binary_mixture(weights, experts, own, classes), labels)
    np.testing.assert_allclose(combined_loss(log_probs, torch.from_numpy(labels)).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(
        expert_loss(*tensors(experts, expert)).numpy(), reference.expert_loss(experts, expert), atol=1e-12
    )
    np.testing.assert_allclose(
        gate_loss(*tensors(gate, expert)).numpy(), reference.combined_loss(weights, expert), atol=1e-12
    )


def test_gradients_of_the_combined_loss_follow_eq_17_to_20(case):
    gate, experts, own, classes = case
    labels = np.random.default_rng(6).integers(0, classes, 7)
    gate_logits, expert_logits = (tensor.requires_grad_() for tensor in tensors(gate, experts))
    log_probs = mixture_log_probs(gate_logits, expert_logits, torch.from_numpy(own), classes)
    combined_loss(log_probs, torch.from_numpy(labels)).sum().backward()
    to_gate, to_experts = reference.combined_loss_gradients(gate, experts, own, classes, labels)
    np.testing.assert_allclose(gate_logits.grad.numpy(), to_gate, atol=1e-12)
    np.testing.assert_allclose(expert_logits.grad.numpy(), to_experts, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_exact(dtype):
    """Three classes, one expert each; the gate is all on expert 0, which is sure of its own class: s = 1000.

    g = (1, e^-500, e^-500). P(0) = 1. For class 1: expert 0 leaves e^-1000 / 2, expert 1 (s = -1000) brings
    e^-500 e^-1000, and expert 2 (s = -1000: surely another class) brings e^-500 / 2, far the largest.
    For class 2 the same with expert 1 in expert 2's place. So log P = (0, -500 - log 2, -500 - log 2).
    """
    gate = torch.tensor([[0.0, -500.0, -500.0]], dtype=dtype, requires_grad=True)
    experts = torch.tensor([[1000.0, -1000.0, -1000.0]], dtype=dtype, requires_grad=True)
    log_probs = mixture_log_probs(gate, experts, torch.tensor([0, 1, 2]), 3)
    expected = torch.tensor([[0.0, -500 - math.log(2), -500 - math.log(2)]], dtype=dtype)
    torch.testing.assert_close(log_probs, expected)
    combined_loss(log_probs, torch.tensor([1])).sum().backward()
    # All of P(1) comes from expert 2, so dL/dh = gate - posterior = (1, 0, 0) - (0, 0, 1).
    torch.testing.assert_close(gate.grad, torch.tensor([[1.0, 0.0, -1.0]], dtype=dtype))
    assert experts.grad.isfinite().all()


def test_top_one_with_extreme_gate_has_finite_gradients():
    """Only expert 1 (class 1) is asked: P = ((1-p)/2, p, (1-p)/2), p = sigmoid(2); expert 0 gets no gradient."""
    gate = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    experts = torch.tensor([[-3.0, 2.0]], requires_grad=True)
    log_probs = mixture_log_probs(gate, experts, torch.tensor([0, 1]), 3, top_k=1)
    p = 1 / (1 + math.exp(-2))
    torch.testing.assert_close(log_probs.exp(), torch.tensor([[(1 - p) / 2, p, (1 - p) / 2]]))
    log_probs[0, 1].backward()
    # d log p / ds = 1 - p
    torch.testing.assert_close(experts.grad, torch.tensor([[0.0, 1 - p]]))
    assert gate.grad.isfinite().all()


def test_half_precision_logits_are_mixed_in_float32():
    gate, experts = torch.randn(2, 4, 3, dtype=torch.bfloat16)
    log_probs = mixture_log_probs(gate, experts, torch.arange(3), 3)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs, mixture_log_probs(gate.float(), experts.float(), torch.arange(3), 3))


def test_equal_gate_logits_keep_exactly_k_experts():
    weights = gate_log_weights(torch.zeros(2, 5), top_k=2).exp()
    assert (weights > 0).sum(dim=1).tolist() == [2, 2]
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))
