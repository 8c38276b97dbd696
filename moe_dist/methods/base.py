"""The interface between a method and everything that runs it.

Letters used in shapes here and in methods/: B samples of a batch, N samples of a set, C classes, E experts, D features,
S image side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from moe_dist.data.batch import Batch, DatasetInfo, TrainingSet
from moe_dist.data.longtail import UNLABELLED
from moe_dist.methods.config import MethodConfig
from moe_dist.methods.phases import Phase, Progress, Results, Stage, Step, stages_of
from moe_dist.models.makers import ExpertMaps, Makers

if TYPE_CHECKING:
    from moe_dist.methods.search import ExpertSearch


LOAD = "load/"
"""How the names begin of the shares of a gate's weight that experts have on validation."""


@dataclass
class Prediction:
    """The prediction of a network for images.

    log_probs: log-probabilities [B, C] of classes or of clusters. gates: the weights [B, E] of experts, by the name of
    the gate; "" for the only gate. experts: the outputs of experts, or None. Outputs [B, E, C] are logits of the
    experts' own predictions. If only k experts were computed (one image, top-k), a gate is [1, k] and experts is None.
    """

    log_probs: Tensor
    gates: Mapping[str, Tensor] = field(default_factory=dict)
    experts: Tensor | None = None


class Method(ABC):
    """The model, losses and phases of a paper or of a baseline."""

    Config: ClassVar[type[MethodConfig]]
    mixes_labels: ClassVar[bool] = False
    """Whether its losses support images of two labels, which MixUp and CutMix make (`Batch.mean_over_labels`)."""
    looks_at_shares: ClassVar[bool] = False
    """Whether the result depends on how a batch is divided into shares of ranks and micro-batches not only by
    batch normalisation and dropout, which are found in the network."""
    heeds_top_k: ClassVar[bool] = False
    """Whether `predict` computes only `top_k` experts where it is asked to."""
    experts_are_classes: ClassVar[bool] = False
    """Whether expert j is the expert of class j, so that other classes are other experts."""
    takes_vectors: ClassVar[bool] = False
    """Whether its samples may be vectors as well as images."""
    predicts: ClassVar[Literal["classes", "clusters"]] = "classes"
    """Whether it predicts classes, or clusters, which are matched with classes for the metrics."""
    chosen_by: ClassVar[str] = "top1"
    """The score that chooses a checkpoint and ranks the trials of a search, in [0, 1], larger is better."""

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        self.config = config
        self.info = info
        self.cache: Path | None = None
        """The folder that runs share, for what can be computed again; set where a network is trained."""
        config.check(info.classes)

    @abstractmethod
    def phases(self) -> Sequence[Phase]:
        """The steps and stages of the method, in order, with unique names."""

    def steps(self) -> Sequence[Step]:
        """The steps among the phases."""
        return [phase for phase in self.phases() if isinstance(phase, Step)]

    def stages(self) -> Sequence[Stage]:
        """The stages among the phases."""
        return stages_of(self.phases())

    def visible_labels(self, results: Results, true_labels: np.ndarray) -> np.ndarray:
        """The labels [N] from which the method may learn, -1 if hidden. Default: all labels."""
        return true_labels

    def training_set(self, results: Results, labels: np.ndarray, samples: np.ndarray) -> TrainingSet:
        """The training set, given the visible `labels` [N] and the numbers of the training samples.

        Default: all samples, or, to predict classes, those that have a label.
        """
        if self.predicts == "classes":
            samples = samples[labels[samples] != UNLABELLED]
        return TrainingSet(samples, labels[samples])

    def labels_used(self) -> str:
        """Which training labels the method learns from, in words for the report."""
        return "all"

    @abstractmethod
    def build(self, make: Makers, results: Results, seed: int) -> nn.Module:
        """The initialised network. `results` may be empty if weights are loaded afterwards.

        With expert parallelism, `make` builds only the experts of this rank.
        """

    def expert_costs(self) -> Sequence[float]:
        """The cost of each expert (multiply-adds of a forward pass), for their placement; empty without experts."""
        return ()

    def set_training(self, network: nn.Module, stage: str) -> None:
        """Set the network's mode for the stage called `stage`. It is called before every epoch."""
        network.train()

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The weighted loss terms by name, whose sum is minimised; a Losses also has values for the log."""

    def loss_phase(self, progress: Progress) -> Hashable | None:
        """All that `loss` takes from the progress: where it is equal, one CUDA graph of the loss serves.

        Default: None, the loss is not captured. A loss that is captured decides nothing by the values of tensors, and
        draws no random numbers but torch's.
        """
        return None

    def measure(self, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """What `score` needs to know of each sample of a validation batch, tensors [B, ...] by name.

        Default: `loss`, the negative log-likelihood, `top1`, whether the most likely class is right, and where there is
        one gate, `load/expert_<e>`, the weight that it gives to each expert.
        """
        prediction = self.predict(network, batch.images)
        log_probs = prediction.log_probs.float()
        loss = nn.functional.nll_loss(log_probs, batch.labels, reduction="none")
        measured = {"loss": loss, "top1": (log_probs.argmax(1) == batch.labels).float()}
        if (gate := prediction.gates.get("")) is not None:
            measured |= {f"{LOAD}expert_{expert}": weights for expert, weights in enumerate(gate.float().T)}
        return measured

    def score(self, measured: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """The scores of a validation split by name, given the arrays [N, ...] of `measure` and the labels [N].

        They include `chosen_by`, and `loss` if a schedule or early stopping uses it. Default: the means.
        """
        return {name: float(values.mean(dtype=np.float64)) for name, values in measured.items()}

    def compared_parameters(self, network: nn.Module) -> Sequence[nn.Parameter | None]:
        """For each expert the parameter whose gradients are compared in the log; None for experts of other ranks.

        Default: none are compared.
        """
        return ()

    @abstractmethod
    def predict(self, network: nn.Module, images: Tensor, top_k: int | None = None) -> Prediction:
        """The prediction for images [B, 3, S, S]; with `top_k`, by the k experts of the largest gate weights only."""

    def packed(self, network: nn.Module) -> nn.Module:
        """The trained network as it predicts fastest: with the same parameters and predictions, to 1e-5, in float32.

        It is not trained any more, and all experts are in this process. Default: `network` itself.
        """
        return network

    def predict_by(self, network: nn.Module, images: Tensor, top_ks: Iterable[int]) -> Mapping[int | None, Prediction]:
        """The predictions by all experts (None) and by each number of `top_ks`; a method may compute experts once."""
        return {k: self.predict(network, images, k) for k in (None, *top_ks)}

    def features(self, network: nn.Module, images: Tensor) -> Tensor | None:
        """The features [B, D] of images [B, 3, S, S], for the report's t-SNE. Default: None, no t-SNE."""
        return None

    def expert_maps(self, network: nn.Module, images: Tensor) -> ExpertMaps | None:
        """The experts' feature maps of images [B, 3, S, S], for the report's Grad-CAM. Default: None, no Grad-CAM."""
        return None

    def pictures(self, network: nn.Module, batch: Batch) -> Mapping[str, np.ndarray]:
        """Arrays for the method's own figures, from the trained network and a few test images. Default: none.

        Its report gets them as the picture `own` (methods/reporting.py).
        """
        return {}

    def search_space(self) -> Mapping[str, Any]:
        """The default search space: from a parameter's path in the configuration to its values, as in a job."""
        return {}

    def expert_search(self) -> ExpertSearch | None:
        """The search for hyper-parameters of single experts. Default: None, experts are not trained alone."""
        return None

    def top_ks(self) -> Iterable[int]:
        """Numbers of experts k for which accuracy and latency are reported beside those of all experts."""
        return ()
