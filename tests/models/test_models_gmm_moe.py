"""models/gmm_moe.py: the equations against scipy and NumPy, gradients, extremes, initialisation, routes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moe_dist.errors import UserError
from moe_dist.models import GMMMoE
from moe_dist.models.gmm_moe import (
    GaussianGate,
    SoftmaxGate,
    SqueezeExcitation,
    farthest_points,
    log_joint,
    width_of_one,
)
from tests.reference import gmm_moe as reference

CHANNELS, DIM, EXPERTS, SIDE = 6, 4, 3, 5


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def module(**settings: object) -> GMMMoE:
    made = GMMMoE(**({"channels": CHANNELS, "dim": DIM, "experts": EXPERTS} | settings))  # type: ignore[arg-type]
    return made.double()


def maps(images: int = 2, side: int = SIDE) -> Tensor:
    return torch.randn(images, CHANNELS, side, side, dtype=torch.float64)


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def test_log_joint_is_scipy_s_density() -> None:
    """The sign of log tau is that of Eq 6: a narrow component has a higher density at its mean."""
    h = torch.randn(7, DIM, dtype=torch.float64)
    means, precisions = torch.randn(EXPERTS, DIM).double(), torch.rand(EXPERTS, DIM).double() * 9 + 0.01
    log_prior = torch.randn(EXPERTS).double().log_softmax(0)
    found = array(log_joint(h, log_prior, means, precisions))
    for row, expected in zip(found, array(h)):
        np.testing.assert_allclose(
            row, reference.log_joint(expected, array(log_prior), array(means), array(precisions)), rtol=1e-10
        )


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("side", [4, 5])
def test_the_module_is_equations_9_to_16_one_place_after_another(kernel: int, side: int) -> None:
    made = module(kernel=kernel, temperature=1.3, residual=0.625).eval()
    made.initialise(maps())
    with torch.no_grad():
        made.gate.prior.copy_(torch.randn(EXPERTS))
        made.gate.raw_precisions.add_(torch.randn(EXPERTS, DIM))
        for expert in made.experts.members.values():
            expert.norm.running_mean.copy_(torch.randn(DIM))
            expert.norm.running_var.copy_(torch.rand(DIM) + 0.5)
    images = maps(side=side)
    mixed = made(images)
    for number, image in enumerate(array(images)):
        features, gamma, nll, balance = by_hand(made, image)
        np.testing.assert_allclose(array(mixed.gamma[number]), gamma, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(array(mixed.features[number]), features, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(mixed.nll[number].item(), nll, rtol=1e-10)
        np.testing.assert_allclose(mixed.balance[number].item(), balance, rtol=1e-9)
        auxiliary = 0.1 * nll / DIM + 0.03 * balance
        np.testing.assert_allclose(made.auxiliary(mixed)[number].item(), auxiliary, rtol=1e-9)


def by_hand(made: GMMMoE, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
    """z, gamma, nll and balance of one map [K, s, s]."""
    p = {name: array(value) for name, value in made.state_dict().items()}
    side = image.shape[1]
    projected = np.einsum("dk,kij->ijd", p["projection.weight"][:, :, 0, 0], image) + p["projection.bias"]
    local = np.array([[reference.layer_norm(h, p["norm.weight"], p["norm.bias"]) for h in row] for row in projected])
    hidden = np.maximum(p["gate.conditional.0.weight"] @ local.mean((0, 1)) + p["gate.conditional.0.bias"], 0)
    conditional = p["gate.conditional.2.weight"] @ hidden + p["gate.conditional.2.bias"]
    log_prior = reference.prior(p["gate.prior"], conditional, p["gate.raw_blend"][0])
    precisions = 1e-3 + reference.softplus(p["gate.raw_precisions"])
    joint = np.array([[reference.log_joint(h, log_prior, p["gate.means"], precisions) for h in row] for row in local])
    gamma = np.array([[reference.responsibilities(place, 1.3, DIM) for place in row] for row in joint])
    gamma = gamma.transpose(2, 0, 1)
    pooled = reference.average_pool(image)
    context = np.einsum("dk,kij->dij", p["context.weight"][:, :, 0, 0], pooled) + p["context.bias"][:, None, None]
    inputs = 0.7 * local.transpose(2, 0, 1) + 0.3 * reference.bilinear(context, side)
    mixed = np.zeros((DIM, side, side))
    for k in range(EXPERTS):
        of = f"experts.members.{k}."
        statistics = (p[of + "norm.running_mean"], p[of + "norm.running_var"])
        mixed += gamma[k] * reference.expert(inputs, p[of + "convolution.weight"], *statistics)
    output = np.einsum("kd,dij->kij", p["output.weight"][:, :, 0, 0], mixed) + p["output.bias"][:, None, None]
    z = 0.375 * image + 0.625 * output
    return z, gamma, reference.negative_log_likelihood(joint), reference.balance(gamma)


def test_gradients_are_those_of_finite_differences() -> None:
    made = module(experts=2, kernel=3, expert_dropout=0.0)
    made.initialise(maps())
    images = maps(side=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: (made(x).features, made.auxiliary(made(x))), images)
    names, values = zip(*made.named_parameters())

    def of_parameters(*parameters: Tensor) -> tuple[Tensor, Tensor]:
        mixed = torch.func.functional_call(made, dict(zip(names, parameters)), images.detach())
        return mixed.features, made.auxiliary(mixed)

    assert torch.autograd.gradcheck(of_parameters, values, fast_mode=True)


@pytest.mark.parametrize("gate", ["gmm", "softmax"])
@pytest.mark.parametrize("route", ["all", "top1", "top2"])
@pytest.mark.parametrize("experts", [1, EXPERTS])
def test_responsibilities_sum_to_one(gate: str, route: str, experts: int) -> None:
    made = module(gate=gate, route=route, experts=experts)
    mixed = made(maps())
    assert torch.allclose(mixed.gamma.sum(1), torch.ones_like(mixed.gamma[:, 0]))
    assert mixed.gamma.shape == (2, experts, SIDE, SIDE)
    if experts == 1:
        assert torch.equal(mixed.gamma, torch.ones_like(mixed.gamma)) and not mixed.balance.any()


@pytest.mark.parametrize("experts", [1, 2, 10])
def test_dropout_never_masks_all_experts(experts: int) -> None:
    made = module(experts=experts, expert_dropout=0.95).train()
    _, weights, _ = made._assign(made.project(maps(images=500, side=1)))
    assert torch.isfinite(weights).all()
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
    kept = (weights > 0).sum(1)
    assert kept.min() == 1 and (experts == 1 or kept.max() > 1)
    made.eval()
    assert torch.equal(*made._assign(made.project(maps()))[:2])


@pytest.mark.parametrize("factor", [0.0, 1e-20, 1e6, 1e15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_maps_stay_finite(factor: float, dtype: torch.dtype) -> None:
    made = module().float().train()
    made.initialise(maps().float())
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        mixed = made((maps() * factor).float())
        loss = mixed.features.float().mean() / max(factor, 1) + made.auxiliary(mixed).mean()
    loss.backward()
    assert mixed.gamma.dtype == torch.float32
    for values in (*mixed, *(p.grad for p in made.parameters() if p.grad is not None)):
        assert torch.isfinite(values).all()


@pytest.mark.parametrize("raw", [-200.0, 200.0])
def test_extreme_precisions_stay_finite(raw: float) -> None:
    """tau has a least value, below which no component spreads."""
    made = module().float()
    nn.init.constant_(made.gate.raw_precisions, raw)
    assert (made.gate.precisions >= 1e-3).all()
    mixed = made(maps().float())
    (mixed.features.sum() + made.auxiliary(mixed).sum()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in made.parameters())


def test_far_features_keep_finite_scores() -> None:
    h = torch.full((2, DIM), 1e6)
    scores = log_joint(h, torch.zeros(EXPERTS), torch.randn(EXPERTS, DIM), torch.full((EXPERTS, DIM), 1e3))
    assert torch.isfinite(scores.softmax(1)).all()


def test_a_map_of_one_pixel() -> None:
    assert module(kernel=5)(maps(images=3, side=1)).features.shape == (3, CHANNELS, 1, 1)


def test_farthest_points_of_a_line_and_of_a_cloud() -> None:
    line = torch.tensor([[0.0], [1.0], [10.0], [4.0], [6.0]])
    assert farthest_points(line, 4).tolist() == [0, 2, 3, 4]
    cloud = torch.randn(40, 3, dtype=torch.float64)
    assert farthest_points(cloud, 9).tolist() == reference.farthest_points(cloud.numpy(), 9)


@pytest.mark.parametrize(("dim", "experts"), [(4, 3), (64, 10), (512, 10)])
def test_the_separation_is_four_after_initialisation(dim: int, experts: int) -> None:
    gate = GaussianGate(dim, experts, 1.0, conditional=True).double()
    gate.initialise(torch.nn.functional.layer_norm(torch.randn(300, dim, dtype=torch.float64), (dim,)))
    assert gate.separation() == pytest.approx(4.0, abs=1e-9)
    assert reference.separation(array(gate.means), array(gate.precisions)) == pytest.approx(4.0, abs=1e-9)


def test_initialisation_of_one_expert_and_of_equal_points() -> None:
    for points in (torch.randn(5, DIM), torch.ones(5, DIM)):
        for experts in (1, 2):
            gate = GaussianGate(DIM, experts, 1.0, conditional=False)
            gate.initialise(points)
            assert torch.isfinite(gate.precisions).all() and torch.equal(gate.means[0], points[0])


def test_too_few_places_are_refused() -> None:
    with pytest.raises(UserError, match="10 experts cannot be initialised from 8 places"):
        module(experts=10).initialise(maps(images=8, side=1))


def test_initialised_responsibilities_are_neither_hard_nor_even() -> None:
    made = module(dim=6, experts=4)
    images = maps(images=30)
    made.initialise(images)
    entropy = made.diagnostics(made.eval()(images).gamma)["entropy"]
    assert 0.01 < entropy < 0.9999


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("route", ["top1", "top2"])
def test_computing_chosen_places_equals_masking_all(kernel: int, route: str) -> None:
    sparse = module(kernel=kernel, route=route).eval()
    sparse.initialise(maps())
    images = maps().requires_grad_()
    weights = sparse._assign(sparse.project(images))[1]
    assert ((weights > 0).sum(1) == int(route[3:])).all()
    inputs = torch.randn(2, DIM, SIDE, SIDE, dtype=torch.float64)
    found = sparse.experts.weighted_sum(inputs, weights)
    for expert in sparse.experts.members.values():
        expert.sparse = False
    torch.testing.assert_close(found, sparse.experts.weighted_sum(inputs, weights))


def test_training_of_an_expert_that_is_chosen_nowhere_or_once() -> None:
    made = module(route="top1").train()
    nn.init.zeros_(made.gate.conditional[2].weight)
    with torch.no_grad():
        made.gate.prior.copy_(torch.tensor([1e3, 0.0, 0.0]))
    mixed = made(maps())
    mixed.features.sum().backward()
    assert torch.isfinite(mixed.features).all()


def test_the_softmax_gate_is_a_linear_classifier() -> None:
    made = module(gate="softmax").eval()
    assert isinstance(made.gate, SoftmaxGate)
    images = maps()
    local = made.project(images)
    gamma = made(images).gamma
    expected = (local @ made.gate.linear.weight.T + made.gate.linear.bias).softmax(3).permute(0, 3, 1, 2)
    torch.testing.assert_close(gamma, expected)
    assert not made(images).nll.any()


def test_one_expert_can_have_the_parameters_of_ten() -> None:
    def count(network: nn.Module) -> int:
        return sum(parameter.numel() for parameter in network.parameters())

    ten = GMMMoE(48, 16, 10, 3, gate="softmax")
    one = GMMMoE(48, 16, 1, 3, gate="softmax", width=width_of_one(48, 16, 10, 3))
    assert abs(count(one) - count(ten)) < 0.02 * count(ten)


def test_squeeze_and_excitation_weighs_channels() -> None:
    made = SqueezeExcitation(8, reduction=4).double()
    images = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    weights = made(images) / images
    torch.testing.assert_close(weights, weights[:, :, :1, :1].expand_as(weights))
    assert ((weights > 0) & (weights < 1)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"experts": 0}, "at least one of them, not 0"), ({"dim": 7}, "a map of 6 channels .* not to 7")],
)
def test_sizes_that_cannot_be_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        module(**settings)


def test_it_exports_and_its_program_gives_the_same() -> None:
    made = module().float().eval()
    images = maps().float()
    program = torch.export.export(made, (images,)).module()
    for found, expected in zip(program(images), made(images)):
        torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_it_compiles_as_one_graph() -> None:
    made = module(expert_dropout=0.0).float()
    images = maps().float()
    expected = made(images)
    made.compile(fullgraph=True)
    for found, before in zip(made(images), expected):
        torch.testing.assert_close(found, before, rtol=1e-4, atol=1e-5)


def test_the_record_of_a_forward_pass() -> None:
    made = module()
    made.initialise(maps())
    told = made.diagnostics(made(maps()).gamma)
    assert told["separation"].item() == pytest.approx(4.0, abs=1e-6)
    assert told["blend"].item() == pytest.approx(1 / (1 + math.e), rel=1e-5)
    assert sum(told[f"gamma/{expert}"].item() for expert in range(EXPERTS)) == pytest.approx(1.0)
