"""models/sparse.py against a slow reference and hand-worked numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moe_dist.models.sparse import Routing, SparseExperts, route
from tests.reference import sparse_moe as reference

TOKENS, WIDTH, EXPERTS, HIDDEN = 23, 3, 5, 4


def random_logits(seed: int) -> Tensor:
    """[T, E], one expert liked by most, so that capacities bind."""
    torch.manual_seed(seed)
    return torch.randn(TOKENS, EXPERTS) + torch.tensor([1.5, 0.0, 0.0, 0.0, -1.0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("top_k", [1, 2])
def test_without_a_capacity_every_choice_is_kept(top_k: int, seed: int) -> None:
    logits = random_logits(seed)
    routes = route(logits, top_k)
    chosen = reference.choices(logits.numpy(), top_k)
    assert routes.choices.tolist() == chosen
    assert routes.kept.all()
    probability = reference.probabilities(logits.numpy())
    expected = reference.weights(probability, chosen, np.ones((TOKENS, top_k), dtype=bool))
    np.testing.assert_allclose(routes.weights, expected, rtol=1e-5)
    assert routes.balance.item() == pytest.approx(reference.balance(probability, chosen), rel=1e-5)


@pytest.mark.parametrize("capacity", [1, 3, 8, 100])
def test_two_choices_queue_in_the_tokens_order(capacity: int) -> None:
    logits = random_logits(0)
    routes = route(logits, 2, capacity)
    chosen = reference.choices(logits.numpy(), 2)
    kept = reference.kept_of_two(chosen, EXPERTS, capacity)
    assert np.array_equal(routes.kept, kept)
    expected = reference.weights(reference.probabilities(logits.numpy()), chosen, kept)
    np.testing.assert_allclose(routes.weights, expected, rtol=1e-5)


def test_first_choices_go_before_second_ones() -> None:
    """Three tokens, two experts, room for two each.

    First choices: token 0 -> 1, tokens 1 and 2 -> 0: all find room. Second choices: token 0 -> 0, already full of 1 and
    2: dropped, so token 0 weighs its first choice 1. Token 1 -> 1, which has room for one more; token 2 -> 1: full.
    Token 1 weighs 3/4 and 1/4: its logits differ by log 3.
    """
    logits = torch.tensor([[0.0, 1.0], [3.0, 1.0], [1.0, 0.0]])
    logits[1] = torch.tensor([3.0, 1.0]).log()
    routes = route(logits, 2, 2)
    assert routes.choices.tolist() == [[1, 0], [0, 1], [0, 1]]
    assert routes.kept.tolist() == [[True, False], [True, True], [True, False]]
    torch.testing.assert_close(routes.weights, torch.tensor([[1.0, 0.0], [0.75, 0.25], [1.0, 0.0]]))
    torch.testing.assert_close(routes.by_expert(2), torch.tensor([[0.0, 1.0], [0.75, 0.25], [1.0, 0.0]]))


@pytest.mark.parametrize("capacity", [1, 3, 8, 100])
def test_one_choice_fills_every_expert_to_its_capacity(capacity: int) -> None:
    """Which of an expert's tokens find room is DeepSpeed's to say (tests/distributed); how many is not."""
    logits = random_logits(1)
    routes = route(logits, 1, capacity)
    first = [own[0] for own in reference.choices(logits.numpy(), 1)]
    assert routes.choices[:, 0].tolist() == first
    taken = [first[token] for token in range(TOKENS) if routes.kept[token, 0]]
    for expert in range(EXPERTS):
        assert taken.count(expert) == min(capacity, first.count(expert))
    probability = reference.probabilities(logits.numpy())
    expected = [probability[token, first[token]] * bool(routes.kept[token, 0]) for token in range(TOKENS)]
    np.testing.assert_allclose(routes.weights[:, 0], expected, rtol=1e-5)


def test_balance_is_one_at_best_and_the_number_of_experts_at_worst() -> None:
    """Each of 4 experts first once and, by symmetry, 1/4 likely on average: 4 * 4 * (1/4 * 1/4) = 1.

    All tokens to expert 0 with certainty: 4 * (1 * 1) = 4.
    """
    assert route(torch.eye(4), 2).balance.item() == pytest.approx(1.0)
    assert route(torch.tensor([[100.0, 0.0, 0.0, 0.0]]).expand(6, 4), 1).balance.item() == pytest.approx(4.0)


def test_capacity_is_rounded_up_in_single_precision() -> None:
    """2 choices * 1.25 * 10 tokens / 8 experts = 3.125, so 4; 1.1 * 100 / 2 = 55, in double precision a little more."""
    assert Routing(1, 8, 2, 1.25).capacity(10) == 4
    assert Routing(1, 2, 1, 1.1).capacity(100) == 55
    assert Routing(1, 2, 1, None).capacity(100) is None


def layer(top_k: int, capacity_factor: float | None) -> SparseExperts:
    """A layer of two-layer perceptrons."""
    factory = lambda: nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH))  # noqa: E731
    return SparseExperts(factory, Routing(WIDTH, EXPERTS, top_k, capacity_factor), seed=3)


def in_numpy(expert: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    w1, b1, w2, b2 = (parameter.detach().numpy() for parameter in expert.parameters())
    return lambda token: w2 @ np.maximum(w1 @ token + b1, 0) + b2


def random_tokens() -> Tensor:
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(0)) + 1


@pytest.mark.parametrize(("top_k", "capacity_factor"), [(1, None), (2, None), (2, 0.5), (2, 1.25)])
def test_the_layer_in_training(top_k: int, capacity_factor: float | None) -> None:
    network, tokens = layer(top_k, capacity_factor), random_tokens()
    mixed, balance = network(tokens)
    logits = tokens.numpy() @ network.gate.weight.detach().numpy().T
    chosen, probability = reference.choices(logits, top_k), reference.probabilities(logits)
    if capacity_factor is None:
        kept = np.ones((TOKENS, top_k), dtype=bool)
    else:
        kept = reference.kept_of_two(chosen, EXPERTS, int(np.ceil(top_k * capacity_factor * TOKENS / EXPERTS)))
        assert not kept.all(), "a capacity that never binds tests nothing"
    weight = reference.weights(probability, chosen, kept)
    expected = reference.mixed(
        tokens.numpy(), chosen, weight, [in_numpy(expert) for expert in network.members.values()]
    )
    np.testing.assert_allclose(mixed.detach(), expected, atol=1e-5)
    assert balance.item() == pytest.approx(reference.balance(probability, chosen), rel=1e-5)


@pytest.mark.parametrize("top_k", [1, 2])
def test_evaluation_drops_nothing(top_k: int) -> None:
    tokens, scarce, unlimited = random_tokens(), layer(top_k, 0.25), layer(top_k, None)
    dropped = (scarce(tokens)[0] == 0).all(1)
    assert dropped.any(), "in training some tokens find no room, and stay zero"
    torch.testing.assert_close(scarce.eval()(tokens)[0], unlimited(tokens)[0])


def test_every_parameter_learns() -> None:
    network = layer(2, None)
    mixed, balance = network(random_tokens())
    (mixed.square().sum() + balance).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
