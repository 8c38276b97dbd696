"""The phases of a method: steps, which work on whole sets, and stages, which train a network by gradients.

Letters used in shapes here: B samples of a batch, N samples of a set, G samples of a global batch, k companions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from moe_dist.data.batch import Batch, DatasetInfo, Images, TrainingSet
from moe_dist.models.makers import Makers
from moe_dist.settings.augment import AugmentConfig
from moe_dist.settings.data import DataConfig
from moe_dist.settings.training import OptimiserConfig, Sampling, ScheduleConfig


@dataclass(frozen=True)
class StepResult:
    """The result of a step: values (JSON) and arrays, by name."""

    values: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


Results = Mapping[str, StepResult]
"""The results of earlier steps, by name."""


class TaskContext(Protocol):
    """The context that a launcher gives to a task."""

    device: torch.device

    def progress(self, done: float, total: float) -> None:
        """Report that `done` of `total` is done. It is cheap to call often."""


TaskFunction = Callable[[Any, Any, TaskContext], Any]
"""function(common, item, context) -> result; a function of a module, so that another process can import it."""


class RunTasks(Protocol):
    """How a step runs tasks: by Ray, or in turn in this process."""

    def __call__(self, function: TaskFunction, items: Sequence[Any], common: Any = None) -> Iterator[Any]:
        """Yield function(common, item, context) for each item, in the order of items; `common` is sent once."""


@dataclass(frozen=True)
class Workspace:
    """The inputs of a step.

    images: the training images. labels [N]: the labels that the method may see, -1 if hidden. groups [N]: the track of
    each image, -1 if none. names: reads what users call the images [N]. samples: the numbers of the training samples,
    without validation. true_labels [N]: all labels, -1 where there is none, for a step with `sees_true_labels`, else
    None. results: of earlier steps, by name. trained(stage): the network that an earlier stage trained, in eval mode on
    the CPU. run_tasks: see RunTasks.
    """

    info: DatasetInfo
    data: DataConfig
    seed: int
    images: Images
    labels: np.ndarray
    groups: np.ndarray
    names: Callable[[], Sequence[str]]
    samples: np.ndarray
    true_labels: np.ndarray | None
    results: Results
    trained: Callable[[str], nn.Module]
    run_tasks: RunTasks


@dataclass(frozen=True)
class Step:
    """Work on whole sets, whose result is kept in the run directory.

    settings: the values that the result depends on. The step is only run again if these or an earlier phase change.
    sees_true_labels: whether it needs all labels, to split the data or to compute scores.
    """

    name: str
    title: str
    run: Callable[[Workspace], StepResult]
    settings: Mapping[str, Any]
    sees_true_labels: bool = False


@dataclass(frozen=True)
class Progress:
    """The position of a training, for a loss.

    epoch: the epoch of the stage, from 0, of `epochs`. step: the step of the training, from 1. stage_step: the step of
    the stage, from 0, of stage_steps. epochs and stage_steps are those of a stage that is not stopped early.
    """

    stage: str
    epoch: int
    epochs: int
    step: int
    stage_step: int = 0
    stage_steps: int = 0


class StageSamples(Protocol):
    """The images of a stage's training set, for `prepare` and `refresh`: without augmentation, in order.

    The methods are collective and return the same on every rank. Results do not depend on the number of ranks.
    """

    seed: int
    device: torch.device

    @property
    def samples(self) -> np.ndarray:
        """The numbers [N] of the stage's samples."""

    @property
    def labels(self) -> np.ndarray:
        """The labels [N] of these samples."""

    def first(self, count: int) -> Batch:
        """A batch of the first `count` samples of the set, shuffled by the seed."""

    def outputs(self, function: Callable[[Batch], Mapping[str, Tensor]]) -> dict[str, np.ndarray]:
        """The results of `function` for all samples, arrays [N, ...] by name. The ranks share the work."""

    def on_one_rank(self, function: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The result of `function` on the first rank, sent to all, for work that is not divided, such as k-means."""


@dataclass(frozen=True)
class Refreshed:
    """The result of a refresh.

    arrays: arrays [N, ...] by name, in the order of the training set; until the next refresh, each batch has its
    samples' rows of them as columns. values: numbers for the log. done: whether the stage ends, for the `reason`.
    """

    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    done: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Refresh:
    """Work with the network on all samples of a stage, before its first step and after every `every_steps` steps.

    run(network, samples, arrays, progress) -> Refreshed. arrays: those of the last refresh, {} at first. It may change
    the network's buffers, and has to draw random numbers from samples.seed only. Collective.
    last: whether it also runs after the stage's last step, so that its arrays belong to the final network.
    """

    every_steps: int
    run: Callable[[nn.Module, StageSamples, Mapping[str, np.ndarray], Progress], Refreshed]
    last: bool = False


CONSTANT, UNCHANGED = ScheduleConfig(), AugmentConfig()

EpochOrder = Callable[[np.ndarray, int, int, int], np.ndarray]
"""(labels [N] of the training set, seed, epoch, G) -> rows of the set in the epoch's batches [steps, G], -1 for none.

A rank of R takes every R-th column, and each of n micro-batches every n-th of these. Samples that a loss compares
within a share must be that many columns apart.
"""
BuildNetwork = Callable[[Makers, Results, Callable[[str], nn.Module], int], nn.Module]
"""(makers, results of steps, function from an earlier stage's name to its network, seed) -> an initialised network."""


class Losses(dict[str, Tensor]):
    """Weighted loss terms by name, whose sum is minimised, and `logged` values, which only appear in the log.

    All are scalars, reduced by `batch.mean`: micro-batches' values are added up, and the log has the mean over ranks.
    Without logged values, a plain dictionary will do.
    """

    def __init__(self, terms: Mapping[str, Tensor], logged: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(terms)
        self.logged = dict(logged or {})


@dataclass(frozen=True)
class Stage:
    """A part of a training with the same trained parameters, optimisers and schedule.

    epochs or steps: the length, one of the two. batch_size: the size of the global batch, of all ranks.
    optimisers: from a prefix of parameter names to the optimiser, or None. The longest matching prefix counts; without
    a match, or with None, a parameter is frozen.
    rate_by: whether the schedule moves by epochs or by steps, over the length of the stage.
    sampling: how often an epoch shows each label of the training set. order: instead, the batches of an epoch.
    patience_epochs: the stage ends after so many epochs without a lower validation loss. validated: whether the stage
    uses the validation split; if not, its result does not depend on it.
    whole_batch: a loss term is not a sum over samples, so a worker's share cannot be divided into micro-batches.
    replicated: every rank computes the whole global batch, without micro-batches, for a cheap loss that compares the
    samples of a batch. The result is then the same on any number of ranks.

    If the stage differs from the method as a whole:
    build: makes a network of its own, or a part of one. Without it, the stage continues with the network of the stage
    before, or with the method's. settings: all that its result depends on beside earlier phases; without them, the
    method's whole configuration. training_set, validation_set, loss, measure: used instead of the method's. prepare:
    called once before the first step, and not after a resume, with the network in eval mode and without gradients.
    refresh: see Refresh. companions: the name of an array [N, k] of rows of the training set, -1 for none, whose images
    are in the batch too.
    """

    name: str
    batch_size: int
    optimisers: Mapping[str, OptimiserConfig | None]
    epochs: int | None = None
    steps: int | None = None
    schedule: ScheduleConfig = CONSTANT
    augment: AugmentConfig = UNCHANGED
    clip_norm: float | None = None
    rate_by: str = "epoch"
    sampling: Sampling = "instance"
    order: EpochOrder | None = None
    patience_epochs: int | None = None
    validated: bool = True
    whole_batch: bool = False
    replicated: bool = False
    title: str = ""
    build: BuildNetwork | None = None
    settings: Mapping[str, Any] | None = None
    training_set: Callable[[Results, np.ndarray, np.ndarray], TrainingSet] | None = None
    validation_set: Callable[[Results, np.ndarray, np.ndarray], TrainingSet] | None = None
    loss: Callable[[nn.Module, Batch, Progress], dict[str, Tensor]] | None = None
    measure: Callable[[nn.Module, Batch], Mapping[str, Tensor]] | None = None
    prepare: Callable[[nn.Module, StageSamples], None] | None = None
    refresh: Refresh | None = None
    companions: str | None = None

    def __post_init__(self) -> None:
        assert (self.epochs is None) != (self.steps is None), f"stage {self.name}: give epochs or steps"
        by_step = self.rate_by == "step" or self.steps is not None
        assert not by_step or self.schedule.kind in ("constant", "cosine"), "only these two kinds move by steps"
        assert self.validated or (self.schedule.kind != "plateau" and self.patience_epochs is None)


@dataclass(frozen=True)
class SideBySide:
    """Stages with networks of their own that do not depend on each other and are trained at the same time."""

    stages: tuple[Stage, ...]


Phase = Step | Stage | SideBySide


def phase_name(phase: Phase) -> str:
    """A phase's name in words."""
    return " and ".join(stage.name for stage in phase.stages) if isinstance(phase, SideBySide) else phase.name


def stages_of(phases: Sequence[Phase]) -> list[Stage]:
    """The stages among `phases`, in order."""
    stages: list[Stage] = []
    for phase in phases:
        stages += [phase] if isinstance(phase, Stage) else phase.stages if isinstance(phase, SideBySide) else []
    return stages
