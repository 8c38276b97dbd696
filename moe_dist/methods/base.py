"""The one protocol between a method and everything that runs it.

Letters used in shapes here and in methods/: B samples of a batch, N samples of a set, C classes, E experts, D features,
S image side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from moe_dist.data.batch import Batch, DatasetInfo, TrainingSet
from moe_dist.methods.config import MethodConfig
from moe_dist.methods.phases import Phase, Progress, Results, Stage, Step, stages_of
from moe_dist.models.makers import ExpertMaps, Makers

if TYPE_CHECKING:
    from moe_dist.methods.search import ExpertSearch


@dataclass
class Prediction:
    """What a network says of images.

    log_probs [B, C]: of classes, or of clusters. gates: weights [B, E] of each gate's experts, by the gate's name; ""
    where there is one gate. experts: per-expert output, or None; where it is [B, E, C], the softmax over C is the
    expert's own prediction.
    Where only k experts were computed (one image, top-k) a gate is [1, k] and experts None.
    """

    log_probs: Tensor
    gates: Mapping[str, Tensor] = field(default_factory=dict)
    experts: Tensor | None = None


class Method(ABC):
    """A paper's or baseline's model, losses and stages. The loop knows methods only through this."""

    Config: ClassVar[type[MethodConfig]]
    mixes_labels: ClassVar[bool] = False
    """Whether its losses go by `Batch.mean_over_labels`, as MixUp and CutMix need."""
    looks_at_shares: ClassVar[bool] = False
    """Whether something depends on how a batch is divided over ranks and micro-batches, beside batch normalisation and
    dropout, which are found in the network: then that division is a part of the result."""
    takes_vectors: ClassVar[bool] = False
    """Whether its samples may be vectors as well as images."""
    predicts: ClassVar[Literal["classes", "clusters"]] = "classes"
    """What the numbers that it predicts mean: clusters are compared with classes up to their names."""
    chosen_by: ClassVar[str] = "top1"
    """The score, in [0, 1] and larger the better, that chooses a checkpoint and ranks the trials of a search."""

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        self.config = config
        self.info = info
        config.check(info.classes)

    @abstractmethod
    def phases(self) -> Sequence[Phase]:
        """Its steps and stages, in order; names are unique."""

    def steps(self) -> Sequence[Step]:
        """The steps among the phases."""
        return [phase for phase in self.phases() if isinstance(phase, Step)]

    def stages(self) -> Sequence[Stage]:
        """The stages among the phases."""
        return stages_of(self.phases())

    def visible_labels(self, results: Results, true_labels: np.ndarray) -> np.ndarray:
        """The labels [N] this method may learn from, -1 where hidden. Default: all of them."""
        return true_labels

    def training_set(self, results: Results, labels: np.ndarray, samples: np.ndarray) -> TrainingSet:
        """What training sees, of the visible `labels` [N] and the numbers of the training part. Default: all."""
        return TrainingSet(samples, labels[samples])

    def labels_used(self) -> str:
        """Which of the training labels are learnt from, in words for the report."""
        return "all"

    @abstractmethod
    def build(self, make: Makers, results: Results, seed: int) -> nn.Module:
        """The network, initialised; `results` may be empty where weights are loaded afterwards.

        Under expert parallelism `make` builds only this rank's experts.
        """

    def expert_costs(self) -> Sequence[float]:
        """Relative cost (multiply-adds of a forward pass) of each expert, for placement; empty where there are none."""
        return ()

    def expert_outputs(self) -> int:
        """How many numbers an expert gives back for one sample; 0 where there are no experts."""
        return 0

    def set_training(self, network: nn.Module, stage: str) -> None:
        """Bring the network into the mode in which the stage called `stage` trains it; asked before every epoch."""
        network.train()

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The loss terms by name (already weighted), whose sum is the objective: see Losses for what else is logged."""

    def measure(self, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """What `score` needs of each sample of a validation batch, [B, ...] by name.

        Default: its negative log-likelihood, `loss`, and whether the most likely class is right, `top1`.
        """
        log_probs = self.predict(network, batch.images).log_probs.float()
        loss = nn.functional.nll_loss(log_probs, batch.labels, reduction="none")
        return {"loss": loss, "top1": (log_probs.argmax(1) == batch.labels).float()}

    def score(self, measured: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """The scores of a validation split, from what `measure` gave, arrays [N, ...], and the labels [N].

        Among them `chosen_by` and, where a stage waits for it, `loss`. Default: the means.
        """
        return {name: float(values.mean(dtype=np.float64)) for name, values in measured.items()}

    def compared_parameters(self, network: nn.Module) -> Sequence[nn.Parameter | None]:
        """Of each expert, the parameter whose gradient tells the expert's share in the log; empty: it has no shares.

        None for an expert that another rank holds.
        """
        return ()

    @abstractmethod
    def predict(self, network: nn.Module, images: Tensor, top_k: int | None = None) -> Prediction:
        """The prediction for images [B, 3, S, S]; with `top_k`, from the k experts of largest gate weight alone."""

    def features(self, network: nn.Module, images: Tensor) -> Tensor | None:
        """What the classifiers see of images [B, 3, S, S], a vector of each [B, D]; None: the method shows none."""
        return None

    def expert_maps(self, network: nn.Module, images: Tensor) -> ExpertMaps | None:
        """Where each expert looks in images [B, 3, S, S]; None: the method shows nothing of it."""
        return None

    def pictures(self, network: nn.Module, batch: Batch) -> Mapping[str, np.ndarray]:
        """Arrays that the method's own figures are drawn from, of the trained network and a few test images.

        They are `own` among the pictures that its report sees (methods/reporting.py). Default: none.
        """
        return {}

    def search_space(self) -> Mapping[str, Any]:
        """Of the method as a whole: parameter, by its path in the configuration -> values, as in a job; empty: none."""
        return {}

    def expert_search(self) -> ExpertSearch | None:
        """How each expert's hyper-parameters are searched; None: the experts are not trained alone."""
        return None

    def top_ks(self) -> Iterable[int]:
        """The numbers of experts for which accuracy and latency are reported beside `all`."""
        return ()
