"""DFCP-MoE as a method: its steps, its joint stage, its objective and its prediction."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_dist.data.batch import Batch, TrainingSet
from moe_dist.methods.base import Method, Prediction
from moe_dist.methods.dfcp import dispatch, losses, prediction, steps
from moe_dist.methods.dfcp.alone import expert_weights, train_experts_alone
from moe_dist.methods.dfcp.config import GATE_SPACE, DfcpConfig, expert_list
from moe_dist.methods.dfcp.network import Mixture, build_mixture, expert_costs, optimisers
from moe_dist.methods.dfcp.packed import PackedMixture
from moe_dist.methods.dfcp.search import DfcpExpertSearch
from moe_dist.methods.phases import Losses, Phase, Progress, Stage, StepResult
from moe_dist.methods.search import ExpertSearch
from moe_dist.models.makers import Makers


class Dfcp(Method):
    """Clusters, labels from few trusted images, an expert trained per class, then all with the managing network."""

    Config = DfcpConfig
    config: DfcpConfig
    heeds_top_k = True
    experts_are_classes = True

    @property
    def experts(self) -> tuple[Any, ...]:
        """The configuration of each expert; expert j is the expert of class j."""
        return expert_list(self.config.experts, self.info.classes)

    def phases(self) -> Sequence[Phase]:
        """The pipeline up to trained experts, in the paper's order, and the joint stage."""
        return (
            *steps.labelling_phases(self.config, self.info.classes),
            train_experts_alone(self.config, self.info),
            self._joint_stage(),
        )

    def visible_labels(self, results: Mapping[str, StepResult], true_labels: np.ndarray) -> np.ndarray:
        """The labels [N] of trusted samples, -1 for all others; all are -1 until the split is made."""
        visible = np.full_like(true_labels, -1)
        if "split" in results:
            split = results["split"].arrays
            visible[split["trusted"]] = split["labels"]
        return visible

    def labels_used(self) -> str:
        """See Method."""
        return self.config.trusted.in_words()

    def training_set(self, results: Mapping[str, StepResult], labels: np.ndarray, samples: np.ndarray) -> TrainingSet:
        """Trusted samples with their labels, and clustered ones with their cluster's class; outliers are left out.

        A label is also the number of the sample's expert, since each class has one cluster and one expert.
        """
        chosen, classes = steps.members(results, labels)
        columns = {}
        if self.config.joint.dispatch == "conditional":
            columns[dispatch.PORTION] = dispatch.portions(classes, self.config.joint.others_fraction)
        return TrainingSet(chosen, classes, columns)

    def build(self, make: Makers, results: Mapping[str, StepResult], seed: int) -> nn.Module:
        """The mixture, its experts with the weights of their training alone."""
        return build_mixture(
            self.experts,
            1,
            self.config.gate,
            self.info.image_size,
            make.experts,
            seed,
            lambda expert: expert_weights(results, expert),
        )

    def expert_costs(self) -> Sequence[float]:
        """Multiply-adds of each expert."""
        return expert_costs(self.experts, 1, self.info.image_size)

    def _joint_stage(self) -> Stage:
        joint = self.config.joint
        return Stage(
            name="joint",
            batch_size=joint.batch_size,
            optimisers=optimisers(self.experts, self.config.gate),
            epochs=joint.epochs,
            schedule=joint.schedule,
            augment=joint.augment,
            clip_norm=joint.clip_norm,
        )

    def loss(self, network: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """L_com + lambda_e L_e + lambda_g L_gate (Eq 14, 16 and the conditioning of the managing network).

        With conditional dispatch, L_com and L_e are over the experts that see a sample; the log says how many do.
        """
        assert isinstance(network, Mixture)
        joint, seen = self.config.joint, None
        if joint.dispatch == "conditional":
            gate_logits, expert_logits, seen = network.dispatched(
                batch.images, lambda logits: self._seen(logits, batch, network.seed, progress.epoch)
            )
        else:
            gate_logits, expert_logits = network(batch.images)
        expert_logits = expert_logits.squeeze(2)
        own_class = torch.arange(self.info.classes, device=gate_logits.device)
        log_probs = losses.mixture_log_probs(gate_logits, expert_logits, own_class, self.info.classes, seen=seen)
        terms = {
            "combined": batch.mean(losses.combined_loss(log_probs, batch.labels)),
            "experts": joint.lambda_e * batch.mean(losses.expert_loss(expert_logits, batch.labels, seen)),
            "gate": joint.lambda_g * batch.mean(losses.gate_loss(gate_logits, batch.labels)),
        }
        return terms if seen is None else Losses(terms, {"experts_a_sample": batch.mean(seen.sum(1).float())})

    def _seen(self, gate_logits: Tensor, batch: Batch, seed: int, epoch: int) -> Tensor:
        """Which experts see which sample of a batch, [B, E] bool; a batch without portions has their mean for all."""
        joint = self.config.joint
        portion = batch.columns.get(dispatch.PORTION, torch.full_like(batch.weight, joint.others_fraction))
        drawn = dispatch.others(portion, gate_logits.shape[1], seed, epoch, batch.samples)
        return dispatch.seen(batch.labels, gate_logits, joint.preferred, drawn)

    def loss_phase(self, progress: Progress) -> Hashable | None:
        """The joint stage; the loss takes nothing else from the progress. Which experts see a sample is drawn anew."""
        return None if self.config.joint.dispatch == "conditional" else progress.stage

    def packed(self, network: nn.Module) -> nn.Module:
        """Experts of similar widths computed together."""
        assert isinstance(network, Mixture)
        return PackedMixture(network, self.info.image_size)

    def predict(self, network: nn.Module, images: Tensor, top_k: int | None = None) -> Prediction:
        """Eq 3 over all experts, or over the `top_k` of largest gate weight, which alone are computed.

        For one image and `top_k`, all experts must be in this process.
        """
        assert isinstance(network, Mixture)
        return prediction.predict(network, images, top_k, self._mix)

    def predict_by(self, network: nn.Module, images: Tensor, top_ks: Iterable[int]) -> Mapping[int | None, Prediction]:
        """See Method; every expert is computed once."""
        assert isinstance(network, Mixture)
        return prediction.predict_by(network, images, top_ks, self._mix)

    def _mix(self, gate_logits: Tensor, expert_logits: Tensor, experts: Tensor, seen: Tensor | None) -> Tensor:
        return losses.mixture_log_probs(gate_logits, expert_logits.squeeze(2), experts, self.info.classes, seen=seen)

    def search_space(self) -> Mapping[str, Any]:
        """The managing network's and the joint stage's; the experts are searched by `expert_search`."""
        return {**GATE_SPACE, "joint.batch_size": [16, 32, 64]}

    def expert_search(self) -> ExpertSearch:
        """A search over Table 1's hyper-parameters."""
        return DfcpExpertSearch(self.experts, self.config.alone)

    def top_ks(self) -> Sequence[int]:
        """The job's."""
        return self.config.top_k
