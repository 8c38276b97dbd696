"""A backbone tapped at several scales, a module at each tap, their maps fused (Eq 17), and a classifier.

Letters in shapes: B samples of a batch, C classes, E experts, K channels of a map, s map side, S image side, W channels
of the fused map.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Annotated, Literal, NamedTuple, cast

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional

from moe_dist.models.experts import Experts, seeded
from moe_dist.models.gmm_moe import GMMMoE, Mixed, Route, SqueezeExcitation, width_of_one
from moe_dist.models.makers import MakeExperts
from moe_dist.models.tapped import Tapped
from moe_dist.settings.schema import Count, NonNegative, Positive, Strict

Modules = Literal["gmm", "softmax", "one_expert", "one_wide_expert", "squeeze_excitation", "none", "linear"]


def _odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise ValueError("an even kernel has no centre; choose 1, 3, 5, ...")
    return kernel


class ModuleConfig(Strict):
    """A module's experts and gate; Table 1 of the paper has one such set for each tap."""

    experts: Count = 10
    """K."""
    dim: Count = 512
    """D: features that the gate and the experts see; at most the map's channels."""
    kernel: Annotated[int, Field(ge=1), AfterValidator(_odd)] = 3
    """Side of the experts' convolutions."""
    temperature: Positive = 1.6
    """T of Eq 10."""
    nll_weight: NonNegative = 0.1
    """beta of Eq 15c."""
    balance_weight: NonNegative = 0.03
    """lambda_b of Eq 15c."""
    expert_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the experts that are masked in training."""
    conditional: bool = True
    """Eq 16; false: the prior is the same for all images."""
    route: Route = "all"
    """top1, top2: at each place compute only the experts of largest responsibility (not in the paper)."""

    def build(
        self, channels: int, modules: Modules, residual: float, make_experts: MakeExperts = Experts, seed: int = 0
    ) -> GMMMoE:
        """The module for a map [B, K, s, s] of `channels` channels, or one that it is compared with."""
        one = modules in ("one_expert", "one_wide_expert")
        wide = modules == "one_wide_expert"
        return GMMMoE(
            channels,
            self.dim,
            1 if one else self.experts,
            self.kernel,
            gate="softmax" if modules == "softmax" else "gmm",
            temperature=self.temperature,
            conditional=self.conditional,
            nll_weight=self.nll_weight,
            balance_weight=self.balance_weight,
            expert_dropout=self.expert_dropout,
            residual=residual,
            width=width_of_one(channels, self.dim, self.experts, self.kernel) if wide else None,
            route="all" if one else self.route,
            make_experts=make_experts,
            seed=seed,
        )


class Tap(ModuleConfig):
    """A tap of the backbone, and the module at it."""

    at: str
    """Path of the backbone's module whose map is tapped."""


class Outputs(NamedTuple):
    """logits [B, C]; features [B, W], what the head sees; fused [B, W, s, s]; mixed: of each module of experts."""

    logits: Tensor
    features: Tensor
    fused: Tensor | None
    mixed: Mapping[str, Mixed]


class Fusion(nn.Module):
    """Maps of several scales, each projected to W channels and brought to the middle one's side, joined (Eq 17).

    Each has a learned weight, which is not normalised.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(each, width, 1) for each in channels)
        self.weights = nn.Parameter(torch.ones(len(channels)))
        self.join = nn.Conv2d(len(channels) * width, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The fused map [B, W, s, s] of maps [B, K, s, s]."""
        sides = sorted((each.shape[2] for each in maps), reverse=True)
        side = sides[(len(sides) - 1) // 2]
        aligned = []
        for each, projection, weight in zip(maps, self.projections, self.weights):
            if each.shape[2] > side:  # both ways the smaller map is projected: the two steps commute
                each = projection(functional.adaptive_avg_pool2d(each, side))
            else:
                each = projection(each)
                each = (
                    functional.interpolate(each, size=(side, side), mode="bilinear") if each.shape[2] < side else each
                )
            aligned.append(weight * each)
        return functional.relu(self.norm(self.join(torch.cat(aligned, 1))))


class MultiScaleNetwork(nn.Module):
    """Images [B, 3, S, S] -> logits [B, C]. `modules` at the taps are GMMMoE, SqueezeExcitation or nothing.

    fusion None: the head sees the taps' pooled maps side by side.
    """

    def __init__(
        self, backbone: Tapped, modules: Mapping[int, nn.Module], fusion: Fusion | None, head: nn.Module
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.modules_at = nn.ModuleDict({str(number): module for number, module in modules.items()})
        self.fusion, self.head = fusion, head

    def forward(self, images: Tensor) -> Outputs:
        """See Outputs."""
        return self.on_maps(self.backbone(images))

    def on_maps(self, maps: Sequence[Tensor]) -> Outputs:
        """What follows the backbone, for its maps [B, K, s, s]."""
        mixed: dict[str, Mixed] = {}
        given: list[Tensor] = []
        for number, (tap, each) in enumerate(zip(self.backbone.taps, maps)):
            if str(number) in self.modules_at:
                each = self.modules_at[str(number)](each)
            if isinstance(each, Mixed):
                mixed[tap], each = each, each.features
            given.append(each)
        fused = None if self.fusion is None else self.fusion(given)
        pooled = [each.mean((2, 3)) for each in (given if fused is None else [fused])]
        features = torch.cat(pooled, 1)
        return Outputs(self.head(features), features, fused, mixed)

    @property
    def mixtures(self) -> dict[str, GMMMoE]:
        """The modules of experts, by their tap."""
        return {
            tap: module
            for number, tap in enumerate(self.backbone.taps)
            if isinstance(module := dict(self.modules_at.items()).get(str(number)), GMMMoE)
        }

    @contextmanager
    def routed(self, top_k: int | None) -> Iterator[None]:
        """Meanwhile only `top_k` experts are computed at each place; None: as the modules were made."""
        with ExitStack() as stack:
            for module in self.mixtures.values() if top_k else ():
                stack.enter_context(module.routed(f"top{top_k}"))
            yield

    def auxiliary(self, outputs: Outputs) -> Tensor | None:
        """The modules' L_aux [B], added up; None where there is no module of experts."""
        losses = [module.auxiliary(outputs.mixed[tap]) for tap, module in self.mixtures.items()]
        return torch.stack(losses).sum(0) if losses else None


def build_multi_scale(
    backbone: Tapped,
    taps: Sequence[Tap],
    shapes: Sequence[tuple[int, int]],
    modules: Modules,
    *,
    width: int,
    dropout: float,
    residual: float,
    classes: int,
    make_experts: MakeExperts,
    seed: int,
) -> MultiScaleNetwork:
    """The network on a tapped backbone; shapes: (channels, side) of its maps. Raises UserError as GMMMoE does."""
    channels = [each for each, _ in shapes]

    def build() -> nn.Module:
        made: dict[int, nn.Module] = {}
        for number, (tap, each) in enumerate(zip(taps, channels)):
            if modules == "squeeze_excitation":
                made[number] = SqueezeExcitation(each)
            elif modules not in ("none", "linear"):
                made[number] = tap.build(each, modules, residual, make_experts, len(taps) * seed + number)
        if modules == "linear":
            return MultiScaleNetwork(backbone, made, None, nn.Linear(sum(channels), classes))
        head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, classes))
        return MultiScaleNetwork(backbone, made, Fusion(channels, width), head)

    return cast(MultiScaleNetwork, seeded(seed, build))
