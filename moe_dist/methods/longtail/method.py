"""What methods that train a branch network share: the network, one or two stages, the prediction.

1. features: all but the fresh classifiers, by the method's own loss.
2. classifiers, if the job has this stage: the fresh classifiers alone, by logit-adjusted cross-entropies.

Letters in shapes: B samples of a batch, C classes, D features, E experts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_dist.data.batch import Batch, DatasetInfo
from moe_dist.errors import UserError
from moe_dist.methods.base import Method, Prediction
from moe_dist.methods.longtail.config import BranchConfig
from moe_dist.methods.longtail.losses import balanced_softmax
from moe_dist.methods.phases import Losses, Progress, Stage, StageSamples, StepResult
from moe_dist.models.branches import (
    BranchNetwork,
    BranchOutputs,
    branch_costs,
    build_branches,
    last_convolutions,
)
from moe_dist.models.gmm_moe import Mixed
from moe_dist.models.makers import ExpertMaps, Makers

FEATURES, CLASSIFIERS = "features", "classifiers"
MODULE_IMAGES = 64
"""Images whose features a module's gate is initialised from."""


class BranchMethod(Method):
    """A shared trunk and E experts; a method adds the loss of stage one."""

    config: BranchConfig
    counts_serve: ClassVar[str] = ""
    """The name of what in stage one needs class counts, for messages; empty: nothing does."""

    def __init__(self, config: BranchConfig, info: DatasetInfo) -> None:
        """Raise UserError where a loss needs class counts and the dataset has none, or a count is 0."""
        super().__init__(config, info)
        self._needs_counts = bool(self.counts_serve) or config.classifiers is not None
        if self._needs_counts:
            _require_counts(config, info, self.counts_serve)

    @abstractmethod
    def feature_loss(
        self, network: nn.Module, outputs: BranchOutputs, batch: Batch, progress: Progress
    ) -> dict[str, Tensor]:
        """The loss terms of stage one by name, from the network's outputs for `batch`; called outside autocast."""

    needs_whole_batch: ClassVar[bool] = False
    """Whether a term of stage one is no sum over samples: then a worker's share cannot be cut into micro-batches."""

    def class_counts(self, network: nn.Module) -> Tensor:
        """Training images of each class, n_c [C] float32, on the network's device; only where a loss needs them."""
        return network.get_buffer("class_counts")

    def build(self, make: Makers, results: Mapping[str, StepResult], seed: int) -> nn.Module:
        """The branches."""
        config, info = self.config, self.info
        network = build_branches(config.network, info.classes, info.image_size, config.experts, make, seed)
        if self._needs_counts:
            counts = torch.tensor(info.class_counts, dtype=torch.float32)
            network.register_buffer("class_counts", counts, persistent=False)
        return network

    def expert_costs(self) -> Sequence[float]:
        """Multiply-adds of each branch."""
        return branch_costs(self.config.network, self.info.classes, self.info.image_size, self.config.experts)

    def phases(self) -> Sequence[Stage]:
        """Features and, if there is a second stage, the fresh classifiers."""
        features, classifiers = self.config.features, self.config.classifiers
        fresh = [f"experts.members.{expert}.classifiers.1." for expert in range(self.config.experts)]
        first = features.stage(FEATURES, {"": features.optimiser()} | dict.fromkeys(fresh), self.needs_whole_batch)
        if self.config.network.module is not None:
            first = replace(first, prepare=_initialise_module)
        if classifiers is None:
            return (first,)
        return first, classifiers.stage(CLASSIFIERS, dict.fromkeys(fresh, classifiers.optimiser()))

    def search_space(self) -> Mapping[str, Any]:
        """Stage one's, whose features both stages depend on."""
        return {
            "features.learning_rate": {"low": 5e-3, "high": 0.5, "log": True},
            "features.weight_decay": {"low": 5e-5, "high": 5e-3, "log": True},
            "features.batch_size": [64, 128, 256],
        }

    def set_training(self, network: nn.Module, stage: str) -> None:
        """In stage two, train the fresh classifiers and keep all batch statistics."""
        if stage == CLASSIFIERS:
            cast(BranchNetwork, network).train_classifiers_only()
        network.train()

    def loss(self, network: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The terms of stage one or, in stage two, the experts' logit-adjusted cross-entropies; in float32."""
        mixed: Mixed | None = None
        if self.config.network.module is None:
            outputs: BranchOutputs = network(batch.images)
        else:
            outputs, mixed = cast(BranchNetwork, network).with_module(batch.images)
        with torch.autocast(batch.images.device.type, enabled=False):
            if progress.stage == FEATURES:
                terms = self.feature_loss(network, outputs, batch, progress)
                return terms if mixed is None else _with_module(network, mixed, batch, terms)
            log_counts = self.class_counts(network).log()
            loss = batch.mean_over_labels(lambda labels: balanced_softmax(outputs.logits, labels, log_counts).sum(1))
            return {"logit_adjusted": loss}

    def loss_phase(self, progress: Progress) -> Hashable | None:
        """The stage; not with a module, whose gate is looked at while it is trained."""
        return None if self.config.network.module is not None else (progress.stage, *self.feature_phase(progress))

    def feature_phase(self, progress: Progress) -> tuple[Hashable, ...]:
        """All that `feature_loss` takes from the progress. Default: nothing."""
        return ()

    def compared_parameters(self, network: nn.Module) -> Sequence[nn.Parameter | None]:
        """Each branch's last convolution."""
        return last_convolutions(cast(BranchNetwork, network), self.config.experts)

    def predict(self, network: nn.Module, images: Tensor, top_k: int | None = None) -> Prediction:
        """The mean of the experts' logits; no adjustment at test time."""
        logits = network(images).logits.float()
        return Prediction(logits.mean(1).log_softmax(1), experts=logits.log_softmax(2))

    def features(self, network: nn.Module, images: Tensor) -> Tensor:
        """The experts' features side by side, [B, E D], each of length 1 as a cosine classifier sees them."""
        return functional.normalize(network(images).features, dim=2).flatten(1)

    def expert_maps(self, network: nn.Module, images: Tensor) -> ExpertMaps:
        """The deep map that each branch pools."""
        return cast(BranchNetwork, network).expert_maps(images)


def _initialise_module(network: nn.Module, samples: StageSamples) -> None:
    """Initialise the module's gate from the last shared map of real images, on the first rank, for all."""
    module = cast(BranchNetwork, network).module
    assert module is not None
    images = samples.first(min(MODULE_IMAGES, len(samples.samples))).images

    def initialised() -> dict[str, np.ndarray]:
        module.initialise(network.get_submodule("trunk")(images)[-1])
        return {name: parameter.cpu().numpy() for name, parameter in module.gate.named_parameters()}

    found = samples.on_one_rank(initialised)
    for name, parameter in module.gate.named_parameters():
        parameter.copy_(torch.from_numpy(found[name]))


def _with_module(network: nn.Module, mixed: Mixed, batch: Batch, terms: dict[str, Tensor]) -> Losses:
    """The terms, the module's auxiliary loss, and what its gate does."""
    module = cast(BranchNetwork, network).module
    assert module is not None
    auxiliary = {"auxiliary": batch.mean(module.auxiliary(mixed))}
    told = {f"module/{name}": batch.mean(value) for name, value in module.diagnostics(mixed.gamma).items()}
    return Losses(terms | auxiliary, told)


def _require_counts(config: BranchConfig, info: DatasetInfo, counts_serve: str) -> None:
    """Raise UserError where the counts that `counts_serve` (or else stage two) needs are unknown, or one is 0."""
    purpose = counts_serve or "logit adjustment in the second stage"
    if not info.class_counts:
        way_out = "" if counts_serve else ", or set method.classifiers to null to do without the second stage"
        raise UserError(
            f"method {config.name}: the dataset tells no class counts, which {purpose} needs; build its shards again"
            + way_out
        )
    empty = [name for name, count in zip(info.class_names, info.class_counts) if not count]
    if empty:
        raise UserError(
            f"method {config.name}: class {', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''} has no training "
            f"image, and {purpose} has no value for a count of 0; lower data.imbalance or data.val_fraction, or raise "
            "data.max_train_images"
        )
