"""What a method is made of in time: steps, which work on whole sets, and stages, which train by gradient.

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
    """What a step leaves: numbers and tables (JSON) and arrays, both by name."""

    values: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


Results = Mapping[str, StepResult]
"""The results of the steps before, by name."""


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
    splits or scores, else None; results: of the steps before, by name; trained: the network that a stage before left,
    by the stage's name, in eval mode on the CPU; run_tasks: see RunTasks.
    """

    info: DatasetInfo
    data: DataConfig
    seed: int
    images: Images
    labels: np.ndarray
    groups: np.ndarray
    samples: np.ndarray
    true_labels: np.ndarray | None
    results: Results
    trained: Callable[[str], nn.Module]
    run_tasks: RunTasks


@dataclass(frozen=True)
class Step:
    """One piece of work on whole sets; its result stays in the run directory and is reused while its inputs last.

    settings: the values it depends on (a rerun whose settings and earlier phases are unchanged skips it);
    sees_true_labels: it splits the labelled data or scores against it.
    """

    name: str
    title: str
    run: Callable[[Workspace], StepResult]
    settings: Mapping[str, Any]
    sees_true_labels: bool = False


@dataclass(frozen=True)
class Progress:
    """Where the training stands when a loss is asked for.

    epoch: of the stage, from 0, of `epochs`; step: of the whole training, from 1; stage_step: of the stage, from 0, of
    stage_steps. epochs and stage_steps are those of a stage that is not stopped early.
    """

    stage: str
    epoch: int
    epochs: int
    step: int
    stage_step: int = 0
    stage_steps: int = 0


class StageSamples(Protocol):
    """The images of a stage's training set, as `prepare` and `refresh` see them: without random changes, in order.

    What the methods return is the same on every rank, to the last bit whatever
    the number of ranks; every rank has to call them.
    """

    seed: int
    device: torch.device

    @property
    def samples(self) -> np.ndarray:
        """The numbers [N] of the stage's samples."""

    @property
    def labels(self) -> np.ndarray:
        """Their labels [N]."""

    def first(self, count: int) -> Batch:
        """The first `count` samples of the set, shuffled by the seed: a batch of real images."""

    def outputs(self, function: Callable[[Batch], Mapping[str, Tensor]]) -> dict[str, np.ndarray]:
        """What `function` gives for all samples, arrays [N, ...] by name; ranks share the work."""

    def on_one_rank(self, function: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """What `function` gives on the first rank, sent to all: work that is not worth dividing, as k-means."""


@dataclass(frozen=True)
class Refreshed:
    """What a refresh leaves.

    arrays [N, ...] by name, in the order of the training set: a batch carries its samples' rows of them as columns
    until the next refresh. values: only logged. done: the stage ends here, because `reason`.
    """

    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    done: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Refresh:
    """Work with the network on all samples of a stage, before its first step and then every `every_steps` steps.

    last: once more after the stage's last step, so that what it leaves is of the network as the stage leaves it.
    run(network, samples, arrays, progress) -> Refreshed; arrays: what the last one left, {} at first. It may change the
    network's buffers; it draws random numbers from samples.seed alone. Collective.
    """

    every_steps: int
    run: Callable[[nn.Module, StageSamples, Mapping[str, np.ndarray], Progress], Refreshed]
    last: bool = False


CONSTANT, UNCHANGED = ScheduleConfig(), AugmentConfig()

EpochOrder = Callable[[np.ndarray, int, int, int], np.ndarray]
"""(labels [N] of the training set, seed, epoch, G) -> its rows in the epoch's batches [steps, G], -1 for none.

A rank takes every W-th column, and a micro-batch every n-th of these: what a loss compares within a share is put so
many columns apart.
"""
BuildNetwork = Callable[[Makers, Results, Callable[[str], nn.Module], int], nn.Module]
"""(makers, results of steps, network trained by a stage before, seed) -> a network, initialised."""


class Losses(dict[str, Tensor]):
    """Loss terms by name (already weighted), whose sum is the objective; logged: values that are only told.

    All are scalars; over several ranks, their average is told. Where nothing is logged, a plain dictionary does.
    """

    def __init__(self, terms: Mapping[str, Tensor], logged: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(terms)
        self.logged = dict(logged or {})


@dataclass(frozen=True)
class Stage:
    """One stretch of gradient training with fixed trainable parameters, optimisers and schedule.

    epochs or steps: its length, one of them. batch_size: of the global batch, over all ranks.
    optimisers maps a parameter-name prefix to its optimiser, or to None; a parameter belongs to the longest prefix that
    fits, and one that none fits, or whose prefix has None, is frozen.
    rate_by: whether the schedule moves with epochs or with steps, over the stage's whole length.
    sampling: how often an epoch shows each of the training set's labels; order: the batches themselves, instead.
    patience_epochs: the stage ends after so many epochs without a lower validation loss. validated: whether it looks at
    the validation split at all; without, its result does not depend on it.
    whole_batch: a loss term is no sum over samples, so that a worker's share cannot be cut into micro-batches.

    Where a stage differs from the method as a whole:
    build: a network of its own, or part of one; without it, it goes on with the network of the stage before, or begins
    with the method's. settings: all that its result depends on, beside the phases before; without them, the method's
    whole configuration. training_set, validation_set, loss, measure: instead of the method's. prepare: once, at the
    stage's start, with the network in eval mode and no gradients; its result is in every checkpoint of the stage.
    refresh: see Refresh. companions: name of an array [N, k] of rows of the training set, -1 for none: their images are
    in the batch too.
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
        assert not by_step or self.schedule.kind in ("constant", "cosine"), "only these two move by steps"
        assert self.validated or (self.schedule.kind != "plateau" and self.patience_epochs is None)


@dataclass(frozen=True)
class SideBySide:
    """Stages with networks of their own that do not depend on each other: they are trained at the same time."""

    stages: tuple[Stage, ...]


Phase = Step | Stage | SideBySide


def phase_name(phase: Phase) -> str:
    """A phase's name in words."""
    return " and ".join(stage.name for stage in phase.stages) if isinstance(phase, SideBySide) else phase.name


def stages_of(phases: Sequence[Phase]) -> list[Stage]:
    """All stages among `phases`, in order."""
    stages: list[Stage] = []
    for phase in phases:
        stages += [phase] if isinstance(phase, Stage) else phase.stages if isinstance(phase, SideBySide) else []
    return stages
