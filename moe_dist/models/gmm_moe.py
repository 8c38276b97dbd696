"""A mixture of convolutional experts whose gate is the posterior of a Gaussian mixture, for any feature map.

Equations are of Şahin, Alpaslan, Hanbay: Multi-scale Gaussian mixture model-gated mixture of experts, Electronics 2026.
Letters in shapes: B samples of a batch, E experts (the paper's K), K channels of a map (its C), D features of the
projection, W channels that an expert gives, s map side, n points.

    from moe_dist.models import GMMMoE
    module = GMMMoE(channels=512, dim=256, experts=10, kernel=5)
    module.initialise(maps)                       # once, with maps [B, K, s, s] of real images
    mixed = module(maps)                          # mixed.features [B, K, s, s], mixed.gamma [B, E, s, s]
    loss = loss + module.auxiliary(mixed).mean()

Readings, where the paper leaves something open:
- The sign of log tau in Eq 9 follows from Eq 6: + 1/2 log tau. Constants are left out of the log-likelihood.
- T_eff = T 512 / D as Eq 10 prints it.
- L_bal (Eq 15b) is of one image's map, as printed, and its mean is taken over the images.
- a_raw begins at -1, as sigmoid(-1) = 0.27 is what the text says; printed is 1.
- Expert dropout draws for every image; the expert of the largest draw stays, so that never all are masked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_dist.errors import UserError
from moe_dist.models.experts import Experts
from moe_dist.models.makers import MakeExperts

REFERENCE_DIM = 512
"""D_ref of Eq 10."""
LOCAL, GLOBAL = 0.7, 0.3
"""Weights of the two parts of an expert's input (Eq 12)."""
LEAST_PRECISION = 1e-3
"""tau_min: standard deviations are at most 32, in units of normalised features."""
SEPARATION = 4.0
"""Distance of the means in standard deviations after initialisation."""
BLEND = -1.0
"""a_raw at the beginning."""

Gate = Literal["gmm", "softmax"]
Route = Literal["all", "top1", "top2"]


class Mixed(NamedTuple):
    """What a module makes of a map.

    features [B, K, s, s]: the map with the experts' part (Eq 14); gamma [B, E, s, s] float32: the experts'
    responsibilities before dropout (Eq 11); nll [B]: negative log-likelihood of a sample's map without constants
    (Eq 15a), 0 with a softmax gate; balance [B]: L_bal (Eq 15b).
    """

    features: Tensor
    gamma: Tensor
    nll: Tensor
    balance: Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """`values` in float32, or in float64 where they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def log_joint(features: Tensor, log_prior: Tensor, means: Tensor, precisions: Tensor) -> Tensor:
    """log pi_k + log N(h | mu_k, 1 / tau_k) without its constant, [..., E] (Eq 9), by two matrix products.

    features [..., D], log_prior broadcastable to [..., E], means and precisions [E, D]. The square is expanded, so that
    nothing of shape [..., E, D] is made.
    """
    squares = features.square() @ precisions.T - 2 * features @ (precisions * means).T
    squares = squares + (precisions * means.square()).sum(1)
    return log_prior + 0.5 * (precisions.log().sum(1) - squares)


def farthest_points(points: Tensor, count: int) -> Tensor:
    """The rows [count] of `points` [n, D] that farthest-point sampling picks, beginning with row 0."""
    chosen = [0]
    nearest = (points - points[0]).square().sum(1)
    for _ in range(count - 1):
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(1))
    return torch.tensor(chosen, device=points.device)


class GaussianGate(nn.Module):
    """Log-responsibilities [B, s, s, E] of features [B, s, s, D] under a mixture whose prior sees the whole map.

    `conditional` False: the prior is the same for all images.
    """

    def __init__(self, dim: int, experts: int, temperature: float, conditional: bool) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.randn(experts, dim))
        self.raw_precisions = nn.Parameter(torch.empty(experts, dim))
        self.prior = nn.Parameter(torch.zeros(experts))
        self.temperature = temperature * REFERENCE_DIM / dim
        self.conditional: nn.Module | None = None
        if conditional:
            hidden = max(1, dim // 4)
            self.conditional = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, experts))
            self.raw_blend = nn.Parameter(torch.full((1,), BLEND))
        with torch.no_grad():
            self.set_deviation(1.0)

    @property
    def precisions(self) -> Tensor:
        """tau [E, D]."""
        return LEAST_PRECISION + functional.softplus(self.raw_precisions)

    def log_prior(self, features: Tensor) -> Tensor:
        """log pi(x) [B, E] (Eq 16) of features [B, s, s, D]."""
        logits = self.prior.expand(features.shape[0], -1)  # not len(), which torch.export takes for a constant
        if self.conditional is not None:
            blend = self.raw_blend.sigmoid()
            logits = (1 - blend) * logits + blend * self.conditional(features.mean((1, 2)))
        return logits.log_softmax(1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [B, s, s, E] whose softmax is gamma (Eq 11), and each sample's mean negative log-likelihood [B]."""
        scores = log_joint(features, self.log_prior(features)[:, None, None], self.means, self.precisions)
        return scores / self.temperature, -scores.logsumexp(3).mean((1, 2))

    def set_deviation(self, deviation: float) -> None:
        """Make every component's standard deviation `deviation`, below 1 / sqrt(LEAST_PRECISION)."""
        above = max(deviation**-2 - LEAST_PRECISION, 1e-9)
        self.raw_precisions.fill_(above + math.log(-math.expm1(-above)))

    @torch.no_grad()
    def initialise(self, points: Tensor) -> None:
        """Means by farthest-point sampling of `points` [n, D], deviations such that the separation is SEPARATION."""
        experts = len(self.means)
        if len(points) < experts:
            raise UserError(
                f"{experts} experts cannot be initialised from {len(points)} places of feature maps; use fewer experts"
            )
        self.means.copy_(points[farthest_points(points, experts)])
        distance = self._distance()
        self.set_deviation(distance / SEPARATION if distance > 0 else 1.0)

    def _distance(self) -> float:
        """The mean distance of two means, 0 where there is one."""
        return float(functional.pdist(self.means.detach().double()).mean()) if len(self.means) > 1 else 0.0

    @torch.no_grad()
    def separation(self) -> float:
        """The mean distance of two means in standard deviations (their mean over components and features)."""
        return self._distance() / float(self.precisions.double().rsqrt().mean())


class SoftmaxGate(nn.Module):
    """The gate of a classical mixture of experts (Eq 8): a linear map of features [B, s, s, D] to scores."""

    def __init__(self, dim: int, experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, experts)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [B, s, s, E], and zeros [B]: it has no likelihood."""
        return self.linear(features), features.new_zeros(features.shape[0])


class ConvolutionalExpert(nn.Module):
    """Convolution, batch normalisation, ReLU: maps [B, D, s, s] -> [B, W, s, s], times the expert's weights [B, s, s].

    sparse: only places of positive weight are computed, and batch statistics are of them alone.
    """

    def __init__(self, dim: int, width: int, kernel: int, sparse: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(dim, width, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.sparse = sparse

    def forward(self, maps: Tensor, weights: Tensor) -> Tensor:
        """The weighted output [B, W, s, s]."""
        if self.sparse:
            return self._at_chosen_places(maps, weights)
        return weights[:, None] * functional.relu(self.norm(self.convolution(maps)), inplace=True)

    def _at_chosen_places(self, maps: Tensor, weights: Tensor) -> Tensor:
        places = (weights > 0).nonzero(as_tuple=True)
        kernel, margin = self.convolution.kernel_size[0], self.convolution.kernel_size[0] // 2
        padded = functional.pad(maps, (margin,) * 4).permute(0, 2, 3, 1)
        patches = padded.unfold(1, kernel, 1).unfold(2, kernel, 1)[places].flatten(1)  # [n, D kernel kernel]
        values = functional.linear(patches, self.convolution.weight.flatten(1))[:, :, None, None]
        if self.training and len(values) < 2:  # too few for statistics of their own
            norm = self.norm
            values = functional.batch_norm(
                values, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
            )
        else:
            values = self.norm(values)
        values = weights[places][:, None] * functional.relu(values)[:, :, 0, 0]
        output = values.new_zeros(*weights.shape, values.shape[1])
        return output.index_put(places, values).permute(0, 3, 1, 2)


class GMMMoE(nn.Module):
    """A module for a map [B, K, s, s]: projection, gate, experts, residual (Eq 9-16).

    channels: K; dim: D, at most K; experts: E; kernel: side of the experts' convolutions, odd; gate: "softmax" is the
    classical gate, for comparison; temperature: T; conditional: whether the prior depends on the image; nll_weight,
    balance_weight: beta and lambda_b of Eq 15c; expert_dropout: the share of experts masked in training; residual: w_r;
    width: W, D where it is None; route: "top1" and "top2" compute only the experts of largest responsibility at each
    place; make_experts, seed: see models/makers.py.
    Raises UserError where dim is larger than channels, or experts is not positive.
    """

    residual: Tensor

    def __init__(
        self,
        channels: int,
        dim: int,
        experts: int,
        kernel: int = 3,
        *,
        gate: Gate = "gmm",
        temperature: float = 1.0,
        conditional: bool = True,
        nll_weight: float = 0.1,
        balance_weight: float = 0.03,
        expert_dropout: float = 0.1,
        residual: float = 0.5,
        width: int | None = None,
        route: Route = "all",
        make_experts: MakeExperts = Experts,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if experts < 1:
            raise UserError(f"a module of experts needs at least one of them, not {experts}")
        if not 1 <= dim <= channels:
            raise UserError(f"a map of {channels} channels is projected to at most so many features, not to {dim}")
        assert kernel % 2, "an even kernel has no centre"
        width = width or dim
        self.dim, self.kernel, self.route = dim, kernel, str(route)
        self.nll_weight, self.balance_weight, self.expert_dropout = nll_weight, balance_weight, expert_dropout
        self.projection = nn.Conv2d(channels, dim, 1)
        self.norm = nn.LayerNorm(dim)
        self.context = nn.Conv2d(channels, dim, 1)
        self.gate: GaussianGate | SoftmaxGate = SoftmaxGate(dim, experts)
        if gate == "gmm":
            self.gate = GaussianGate(dim, experts, temperature, conditional)
        factories = [lambda: ConvolutionalExpert(dim, width, kernel, route != "all")] * experts
        self.experts = make_experts(factories, [1.0] * experts, seed)
        self.output = nn.Conv2d(width, channels, 1)
        self.register_buffer("residual", torch.tensor(residual))

    def forward(self, maps: Tensor) -> Mixed:
        """The map with the experts' part, and what the gate did, of maps [B, K, s, s]."""
        local = self.project(maps)
        gamma, weights, nll = self._assign(local)
        context = self.context(functional.avg_pool2d(maps, 2, ceil_mode=True))
        context = functional.interpolate(context, size=maps.shape[2:], mode="bilinear")
        inputs = LOCAL * local.permute(0, 3, 1, 2) + GLOBAL * context  # Eq 12
        if self.kernel > 1 and inputs.device.type == "cpu":
            inputs = inputs.contiguous()  # channels-last, such convolutions take a fifth longer there
        mixed = self.output(cast(Experts, self.experts).weighted_sum(inputs, weights))  # Eq 13
        features = (1 - self.residual) * maps + self.residual * mixed  # Eq 14
        balance = (gamma.mean((2, 3)) - 1 / gamma.shape[1]).square().sum(1)  # Eq 15b
        return Mixed(features, gamma, nll, balance)

    def project(self, maps: Tensor) -> Tensor:
        """h_local [B, s, s, D]: what the gate sees of maps [B, K, s, s]."""
        return self.norm(self.projection(maps).permute(0, 2, 3, 1))

    def _assign(self, local: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """gamma [B, E, s, s], the weights that the experts' outputs get [B, E, s, s], and the nll [B]; not autocast."""
        with torch.autocast(local.device.type, enabled=False):
            scores, nll = self.gate(at_least_float32(local))
            gamma = scores.softmax(3).permute(0, 3, 1, 2)
            if self.training and self.expert_dropout > 0:
                scores = scores.masked_fill(self._masked(scores), -torch.inf)  # the softmax renormalises
            if self.route != "all":
                scores = self._keep_largest(scores)
            return gamma, scores.softmax(3).permute(0, 3, 1, 2), nll

    def _masked(self, scores: Tensor) -> Tensor:
        """Which experts are masked, [B, 1, 1, E] bool; never all of an image."""
        draws = torch.rand(len(scores), 1, 1, scores.shape[3], device=scores.device)
        return (draws < self.expert_dropout) & (draws < draws.amax(3, keepdim=True))

    def _keep_largest(self, scores: Tensor) -> Tensor:
        kept = scores.topk(min(int(self.route[3:]), scores.shape[3]), dim=3)
        return torch.full_like(scores, -torch.inf).scatter(3, kept.indices, kept.values)

    @contextmanager
    def routed(self, route: str) -> Iterator[None]:
        """Meanwhile experts are computed as `route` says; all of them must be in this process."""
        before = self.route
        self._set_route(route)
        try:
            yield
        finally:
            self._set_route(before)

    def _set_route(self, route: str) -> None:
        self.route = route
        for expert in cast(Experts, self.experts).members.values():
            cast(ConvolutionalExpert, expert).sparse = route != "all"

    def auxiliary(self, mixed: Mixed) -> Tensor:
        """L_aux [B] (Eq 15c)."""
        return self.nll_weight * mixed.nll / self.dim + self.balance_weight * mixed.balance

    @torch.no_grad()
    def initialise(self, maps: Tensor) -> None:
        """Initialise the gate from maps [B, K, s, s] of real images. A softmax gate stays as it is."""
        if isinstance(self.gate, GaussianGate):
            with torch.autocast(maps.device.type, enabled=False):
                points = self.project(maps.to(self.projection.weight.dtype))
            self.gate.initialise(points.flatten(0, 2))

    @torch.no_grad()
    def diagnostics(self, gamma: Tensor) -> dict[str, Tensor]:
        """Numbers to log of gamma [B, E, s, s]: the mean entropy as a share of the largest possible one, each expert's
        mean responsibility, and where the gate is Gaussian the separation and the prior's blend."""
        experts = gamma.shape[1]
        entropy = torch.special.entr(gamma).sum(1).mean() / math.log(max(experts, 2))
        found = {"entropy": entropy, "residual": self.residual.clone()}
        found |= {f"gamma/{expert}": load for expert, load in enumerate(gamma.mean((0, 2, 3)))}
        if isinstance(self.gate, GaussianGate):
            found["separation"] = gamma.new_tensor(self.gate.separation())
            if self.gate.conditional is not None:
                found["blend"] = self.gate.raw_blend.sigmoid()[0]
        return found


class SqueezeExcitation(nn.Module):
    """Channels of a map [B, K, s, s] weighted by what the whole map holds (Hu et al. 2018), for comparison."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.weigh = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, maps: Tensor) -> Tensor:
        """The weighted map [B, K, s, s]."""
        return maps * self.weigh(maps.mean((2, 3)))[:, :, None, None]


def width_of_one(channels: int, dim: int, experts: int, kernel: int) -> int:
    """W of one expert such that a module has about as many parameters as one of `experts` experts of width D."""
    many = experts * dim * (kernel**2 * dim + 2) + dim * channels
    return round(many / (kernel**2 * dim + 2 + channels))
