"""The one protocol between a method and everything that runs it.

Letters used in shapes here and in methods/: B samples of a batch, C classes, E experts, D features, S image side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from moe_dist.data.batch import Batch, DatasetInfo, Images, TrainingSet
from moe_dist.methods.config import MethodConfig
from moe_dist.models.makers import ExpertMaps, Makers
from moe_dist.settings.augment import AugmentConfig
from moe_dist.settings.data import DataConfig
from moe_dist.settings.training import OptimiserConfig, Sampling, ScheduleConfig

if TYPE_CHECKING:
    from moe_dist.methods.search import ExpertSearch


@dataclass(frozen=True)
class Stage:
    """One stretch of training with fixed trainable parameters, optimisers and schedule.

    optimisers maps a parameter-name prefix to its optimiser, or to None; a parameter belongs to the longest prefix that
    fits, and one that none fits, or whose prefix has None, is frozen. batch_size is the global batch, over all ranks.
    sampling: how often an epoch shows each of the training set's labels.
    """

    name: str
    epochs: int
    batch_size: int
    optimisers: Mapping[str, OptimiserConfig | None]
    schedule: ScheduleConfig
    augment: AugmentConfig
    clip_norm: float | None = None
    sampling: Sampling = "instance"


@dataclass(frozen=True)
class Progress:
    """Where the training stands when a loss is asked for."""

    stage: str
    epoch: int
    epochs: int
    step: int


@dataclass
class Prediction:
    """log_probs [B, C]; gate [B, E]: gate weights, or None; experts: per-expert output, or None: where it is [B, E, C],
    the softmax over C is the expert's own prediction.

    Where only k experts were computed (one image, top-k) gate is [1, k] and experts None.
    """

    log_probs: Tensor
    gate: Tensor | None = None
    experts: Tensor | None = None


@dataclass(frozen=True)
class StepResult:
    """What a step leaves: numbers and tables (JSON) and arrays, both by name."""

    values: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class TaskContext(Protocol):
    """What a task knows of where it runs."""

    device: torch.device

    def progress(self, done: float, total: float) -> None:
        """Tell how far the task is; cheap to call often."""


TaskFunction = Callable[[Any, Any, TaskContext], Any]
"""function(common, item, context) -> result. A module-level function, so that another process can import it."""


class RunTasks(Protocol):
    """How a step runs work elsewhere: as Ray tasks, or one after another in this process."""

    def __call__(self, function: TaskFunction, items: Sequence[Any], common: Any = None) -> Iterator[Any]:
        """function(common, item, context) of every item, results in the items' order; `common` is sent once."""


@dataclass(frozen=True)
class Workspace:
    """What a step is given.

    images: the training images; labels [N]: those the method may see, -1 where hidden; groups [N]: track of each image,
    -1 for none; samples: numbers of the training part (validation left out); true_labels [N]: only for a step that
    splits or scores, else None; results: of the steps before, by name; run_tasks: see RunTasks.
    """

    info: DatasetInfo
    data: DataConfig
    seed: int
    images: Images
    labels: np.ndarray
    groups: np.ndarray
    samples: np.ndarray
    true_labels: np.ndarray | None
    results: Mapping[str, StepResult]
    run_tasks: RunTasks


@dataclass(frozen=True)
class Step:
    """One piece of work before training; its result stays in the run directory and is reused while its inputs last.

    settings: the values it depends on (a rerun whose settings and earlier steps are unchanged skips it);
    sees_true_labels: it splits the labelled data or scores against it.
    """

    name: str
    title: str
    run: Callable[[Workspace], StepResult]
    settings: Mapping[str, Any]
    sees_true_labels: bool = False


class Method(ABC):
    """A paper's or baseline's model, losses and stages. The loop knows methods only through this."""

    Config: ClassVar[type[MethodConfig]]
    mixes_labels: ClassVar[bool] = False
    """Whether its losses go by `Batch.mean_over_labels`, as MixUp and CutMix need."""
    looks_at_shares: ClassVar[bool] = False
    """Whether something depends on how a batch is divided over ranks and micro-batches, beside batch normalisation and
    dropout, which are found in the network: then that division is a part of the result."""
    needs_whole_batch: ClassVar[bool] = False
    """Whether a loss term is no sum over samples: then a worker's share of a batch cannot be cut into micro-batches."""

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        self.config = config
        self.info = info
        config.check(info.classes)

    def steps(self) -> Sequence[Step]:
        """What is done before training, in order. Default: nothing."""
        return ()

    def visible_labels(self, results: Mapping[str, StepResult], true_labels: np.ndarray) -> np.ndarray:
        """The labels [N] this method may learn from, -1 where hidden. Default: all of them."""
        return true_labels

    def training_set(self, results: Mapping[str, StepResult], labels: np.ndarray, samples: np.ndarray) -> TrainingSet:
        """What training sees, of the visible `labels` [N] and the numbers of the training part. Default: all."""
        return TrainingSet(samples, labels[samples])

    def labels_used(self) -> str:
        """Which of the training labels are learnt from, in words for the report."""
        return "all"

    @abstractmethod
    def build(self, make: Makers, results: Mapping[str, StepResult], seed: int) -> nn.Module:
        """The network, initialised; `results` may be empty where weights are loaded afterwards.

        Under expert parallelism `make` builds only this rank's experts.
        """

    def expert_costs(self) -> Sequence[float]:
        """Relative cost (multiply-adds of a forward pass) of each expert, for placement; empty where there are none."""
        return ()

    def expert_outputs(self) -> int:
        """How many numbers an expert gives back for one sample; 0 where there are no experts."""
        return 0

    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """The training stages in order."""

    def set_training(self, network: nn.Module, stage: str) -> None:
        """Bring the network into the mode in which the stage called `stage` trains it; asked before every epoch."""
        network.train()

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The loss terms by name (already weighted); the objective is their sum."""

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

    def search_space(self) -> Mapping[str, Any]:
        """Of the method as a whole: parameter, by its path in the configuration -> values, as in a job; empty: none."""
        return {}

    def expert_search(self) -> ExpertSearch | None:
        """How each expert's hyper-parameters are searched; None: the experts are not trained alone."""
        return None

    def top_ks(self) -> Iterable[int]:
        """The numbers of experts for which accuracy and latency are reported beside `all`."""
        return ()
