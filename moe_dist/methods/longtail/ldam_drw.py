"""LDAM with deferred re-weighting (Cao et al., NeurIPS 2019): larger margins for rarer classes, weights later on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from moe_dist.data.batch import Batch
from moe_dist.errors import UserError
from moe_dist.methods.config import MethodConfig
from moe_dist.methods.longtail import losses
from moe_dist.methods.longtail.config import BranchConfig, Epoch
from moe_dist.methods.longtail.method import BranchMethod
from moe_dist.methods.phases import Progress
from moe_dist.methods.ranks import global_mean
from moe_dist.models.branches import BranchOutputs
from moe_dist.settings.schema import Fraction


class MarginConfig(BranchConfig):
    """LDAM's margins and the deferred weights."""

    margin: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """The rarest class's margin, in units of cosine; the others are smaller, proportional to n_c^(-1/4)."""
    beta: Fraction = 0.9999
    """beta of the effective number of samples."""
    reweight_from: Epoch = 160
    """From this epoch on, samples are weighted by their class."""

    def check(self, classes: int) -> None:
        """Raise UserError for linear classifiers, whose logits are not cosines."""
        if self.network.classifier == "linear":
            raise UserError(
                f"method {self.name}: its margins are differences of cosines, and method.network.classifier is linear; "
                "set it to cosine"
            )

    def notices(self) -> Sequence[str]:
        """A notice where training ends before the epoch of the deferred weights."""
        if self.reweight_from < self.features.epochs:
            return ()
        return (
            f"samples are never weighed by their class: reweight_from = {self.reweight_from}, and features.epochs = "
            f"{self.features.epochs}",
        )


class LdamDrwConfig(MarginConfig):
    """LDAM's settings, as MarginConfig has them."""

    name: Literal["ldam_drw"] = "ldam_drw"


class LdamDrw(BranchMethod):
    """Every expert is trained by LDAM."""

    Config: ClassVar[type[MethodConfig]] = LdamDrwConfig
    config: MarginConfig
    needs_whole_batch = True
    counts_serve = "LDAM"

    def feature_phase(self, progress: Progress) -> tuple[Hashable, ...]:
        """Whether samples are weighed by their class."""
        return (progress.epoch < self.config.reweight_from,)

    def feature_loss(
        self, network: nn.Module, outputs: BranchOutputs, batch: Batch, progress: Progress
    ) -> dict[str, Tensor]:
        """The sum of the experts' losses; from `reweight_from` on, the mean over samples is weighted by class."""
        config, counts = self.config, self.class_counts(network)
        margins = config.network.scale * losses.margins(counts, config.margin)
        loss = losses.ldam(outputs.logits, batch.labels, margins).sum(1)
        if progress.epoch < config.reweight_from:
            return {"ldam": batch.mean(loss)}
        weights = losses.effective_weights(counts, config.beta)[batch.labels]
        return {"ldam": batch.mean(weights * loss) / global_mean(batch.mean(weights))}
