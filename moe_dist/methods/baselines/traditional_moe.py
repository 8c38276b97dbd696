"""The traditional mixture of experts that DFCP-MoE is compared with: the same experts and managing network, end to end.

Experts are C-way softmax classifiers. There are no clusters, and L_com alone trains the managing network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from moe_dist.data.batch import Batch
from moe_dist.methods.base import Method, Prediction
from moe_dist.methods.config import MethodConfig
from moe_dist.methods.dfcp import losses, prediction
from moe_dist.methods.dfcp.config import GATE_SPACE, ExpertConfig, Experts, GateConfig, expert_list
from moe_dist.methods.dfcp.network import Mixture, build_mixture, expert_costs, optimisers
from moe_dist.methods.dfcp.packed import PackedMixture
from moe_dist.methods.phases import Progress, Stage, StepResult
from moe_dist.models.makers import Makers
from moe_dist.settings.augment import AugmentConfig
from moe_dist.settings.schema import Count, Part, Positive
from moe_dist.settings.training import Sampling, ScheduleConfig


class TraditionalMoeConfig(MethodConfig):
    """The mixture's experts, gate and training."""

    name: Literal["traditional_moe"] = "traditional_moe"
    experts: Experts = ExpertConfig()
    gate: GateConfig = GateConfig()
    epochs: Count = 100
    batch_size: Count = 32
    schedule: ScheduleConfig = ScheduleConfig(kind="plateau", factor=0.1, patience_epochs=10)
    augment: AugmentConfig = AugmentConfig()
    sampling: Sampling = "instance"
    clip_norm: Positive | None = None
    top_k: Annotated[tuple[Count, ...], Part.EVALUATION] = (1, 3)

    def check(self, classes: int) -> None:
        """Require as many experts as DFCP-MoE has: one for each class."""
        expert_list(self.experts, classes)


class TraditionalMoe(Method):
    """Softmax experts mixed by a managing network, trained on the mixture's likelihood."""

    Config = TraditionalMoeConfig
    mixes_labels = True
    config: TraditionalMoeConfig
    heeds_top_k = True

    @property
    def experts(self) -> tuple[ExpertConfig, ...]:
        """The configuration of each expert."""
        return expert_list(self.config.experts, self.info.classes)

    def build(self, make: Makers, results: Mapping[str, StepResult], seed: int) -> nn.Module:
        """The mixture, freshly initialised."""
        return build_mixture(
            self.experts,
            self.info.classes,
            self.config.gate,
            self.info.image_size,
            make.experts,
            seed,
            weights=lambda expert: None,
        )

    def expert_costs(self) -> Sequence[float]:
        """Multiply-adds of each expert."""
        return expert_costs(self.experts, self.info.classes, self.info.image_size)

    def phases(self) -> Sequence[Stage]:
        """One stage, end to end."""
        config = self.config
        return (
            Stage(
                name="joint",
                batch_size=config.batch_size,
                optimisers=optimisers(self.experts, config.gate),
                epochs=config.epochs,
                schedule=config.schedule,
                augment=config.augment,
                clip_norm=config.clip_norm,
                sampling=config.sampling,
            ),
        )

    def search_space(self) -> Mapping[str, Any]:
        """The managing network's, as DFCP-MoE's, and the batch size."""
        return {**GATE_SPACE, "batch_size": [16, 32, 64]}

    def loss(self, network: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """L_com (Eq 16)."""
        log_probs = losses.mixture_of_softmax_log_probs(*network(batch.images))
        return {"combined": batch.mean_over_labels(lambda labels: losses.combined_loss(log_probs, labels))}

    def packed(self, network: nn.Module) -> nn.Module:
        """Experts of similar widths computed together."""
        assert isinstance(network, Mixture)
        return PackedMixture(network, self.info.image_size)

    def predict(self, network: nn.Module, images: Tensor, top_k: int | None = None) -> Prediction:
        """Eq 3 over all experts, or over the `top_k` of largest gate weight, which alone are computed."""
        assert isinstance(network, Mixture)
        return prediction.predict(network, images, top_k, _mix)

    def predict_by(self, network: nn.Module, images: Tensor, top_ks: Iterable[int]) -> Mapping[int | None, Prediction]:
        """See Method; every expert is computed once."""
        assert isinstance(network, Mixture)
        return prediction.predict_by(network, images, top_ks, _mix)

    def top_ks(self) -> Sequence[int]:
        """The job's."""
        return self.config.top_k


def _mix(gate_logits: Tensor, expert_logits: Tensor, experts: Tensor, seen: Tensor | None) -> Tensor:
    """The mixture as prediction.Mix has it: a softmax expert's outputs are of all classes, whichever it is."""
    return losses.mixture_of_softmax_log_probs(gate_logits, expert_logits, seen=seen)
