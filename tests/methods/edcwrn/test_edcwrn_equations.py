"""The equations of EDCWRN, DEC and IDEC against their slow references, and where they could divide by 0."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moe_dist.methods.edcwrn import equations
from tests.reference import edcwrn as slow

A, B = 1.93, 0.79


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [7, 4], centres [3, 4] and weights [3, 4] whose rows sum to 1."""
    random = np.random.default_rng(0)
    weights = random.uniform(0.1, 1, (3, 4))
    return random.normal(size=(7, 4)), random.normal(size=(3, 4)), weights / weights.sum(1, keepdims=True)


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array.copy()) for array in arrays]


def test_proposed_assignment_is_eq_11(drawn: tuple[np.ndarray, ...]) -> None:
    logs = equations.log_proposed(equations.weighted_distances(*tensors(*drawn)), A, B)
    np.testing.assert_allclose(logs.exp(), slow.proposed(*drawn, A, B), rtol=1e-12)


@pytest.mark.parametrize("weighted", [True, False])
def test_student_assignment_is_eq_4(weighted: bool, drawn: tuple[np.ndarray, ...]) -> None:
    codes, centres, weights = drawn
    used = weights if weighted else np.ones_like(weights)
    distances = equations.weighted_distances(*tensors(codes, centres), *tensors(weights)[: int(weighted)])
    np.testing.assert_allclose(equations.log_student(distances).exp(), slow.student(codes, centres, used), rtol=1e-12)


def test_target_is_eq_5(drawn: tuple[np.ndarray, ...]) -> None:
    q = slow.proposed(*drawn, A, B)
    np.testing.assert_allclose(equations.target_distribution(*tensors(q)), slow.target(q), rtol=1e-12)


@pytest.mark.parametrize("normalise", [True, False])
def test_cross_entropy_is_eq_13(normalise: bool, drawn: tuple[np.ndarray, ...]) -> None:
    q = slow.proposed(*drawn, A, B)
    p = slow.target(q)
    ours = equations.cross_entropy(*tensors(p, np.log(q)), normalise)
    np.testing.assert_allclose(ours, slow.cross_entropy(p, q, normalise), rtol=1e-12)


def test_divergence_is_eq_3(drawn: tuple[np.ndarray, ...]) -> None:
    q = slow.student(*drawn)
    p = slow.target(q)
    np.testing.assert_allclose(equations.divergence(*tensors(p, np.log(q))), slow.divergence(p, q), rtol=1e-10)


def test_weights_are_eq_15(drawn: tuple[np.ndarray, ...]) -> None:
    codes, centres, _ = drawn
    q = slow.proposed(*drawn, A, B)
    found = equations.feature_weights(equations.spreads(*tensors(q, codes, centres), 2.0))
    np.testing.assert_allclose(found, slow.weights(q, codes, centres, 2.0), rtol=1e-10)


@pytest.mark.parametrize("by", ["codes", "centres"])
def test_autograd_gives_the_corrected_gradients_of_a1_and_a2(by: str, drawn: tuple[np.ndarray, ...]) -> None:
    p = slow.target(slow.proposed(*drawn, A, B))
    codes, centres, weights = tensors(*drawn)
    codes.requires_grad_(), centres.requires_grad_()
    logs = equations.log_proposed(equations.weighted_distances(codes, centres, weights), A, B)
    equations.cross_entropy(torch.from_numpy(p), logs, normalise=False).sum().backward()
    reference = slow.gradient_by_codes if by == "codes" else slow.gradient_by_centres
    ours = codes.grad if by == "codes" else centres.grad
    assert ours is not None
    np.testing.assert_allclose(ours, reference(p, *drawn, A, B), rtol=1e-9)


def test_a1_as_printed_is_another_gradient(drawn: tuple[np.ndarray, ...]) -> None:
    """Each feature's term alone to the power b - 1: not the derivative of Eq 11, whichever its sign."""
    p = slow.target(slow.proposed(*drawn, A, B))
    corrected, printed = (
        function(p, *drawn, A, B) for function in (slow.gradient_by_codes, slow.printed_gradient_by_codes)
    )
    assert not np.allclose(np.abs(corrected), np.abs(printed), rtol=0.05)


def test_features_without_spread_and_empty_clusters_have_weights_that_sum_to_1() -> None:
    codes = torch.tensor([[1.0, 0.0], [1.0, 2.0], [1.0, 4.0]])
    centres = torch.tensor([[1.0, 2.0], [1.0, 2.0], [50.0, 50.0]])
    q = torch.tensor([[1.0, 0.0, 0.0]] * 3)
    weights = equations.feature_weights(equations.spreads(q, codes, centres, 2.0))
    assert weights.sum(1).tolist() == pytest.approx([1, 1, 1])
    assert weights[0, 0] > 0.999
    assert weights[1].tolist() == weights[2].tolist() == [0.5, 0.5]


def test_a_code_on_its_centre_has_a_finite_gradient() -> None:
    codes = torch.zeros(2, 3, requires_grad=True)
    logs = equations.log_proposed(equations.weighted_distances(codes, torch.zeros(2, 3)), A, B)
    logs.sum().backward()
    assert codes.grad is not None and torch.isfinite(codes.grad).all() and (logs > -1e-4).all()


def test_the_target_of_an_empty_cluster_and_of_a_lost_sample_is_finite() -> None:
    """No sample is in the second cluster; the last sample is in none: it is shared out evenly."""
    target = equations.target_distribution(torch.tensor([[1.0, 0.0], [0.5, 0.0], [0.0, 0.0]]))
    assert target.tolist() == [[1, 0], [1, 0], [0.5, 0.5]]
