"""What a method gives a search for each expert's hyper-parameters, if its experts are trained alone.

Letters in shapes: N samples of the validation split.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from moe_dist.data.batch import Images, TrainingSet
from moe_dist.settings.data import DataConfig
from moe_dist.settings.schema import Strict


@dataclass(frozen=True)
class SearchData:
    """What the trials of experts are trained and scored on.

    training_set: samples of `train` with the labels that the method may see; val_samples [N]: numbers in `val`, with
    their true labels val_labels [N].
    """

    config: DataConfig
    train: Images
    training_set: TrainingSet
    val: Images
    val_samples: np.ndarray
    val_labels: np.ndarray


@dataclass(frozen=True)
class ExpertTrial:
    """One configuration of one expert that is trained and scored."""

    expert: int
    config: Any


@dataclass(frozen=True)
class Score:
    """value: in [0, 1], larger is better; loss: on the same samples. Not finite where the training diverged."""

    value: float
    loss: float


class RunningTrials(Protocol):
    """Trials in training, each as if it were alone. They are numbered from 0, in the order they were given."""

    def train_epoch(self) -> None:
        """Train every trial that was not dropped for one epoch."""

    def scores(self) -> dict[int, Score]:
        """The validation score of every trial that was not dropped."""

    def drop(self, numbers: Collection[int]) -> None:
        """Stop training these trials."""


class ExpertSearch(ABC):
    """How a method's experts are trained and scored, one configuration of one expert a trial."""

    space: ClassVar[Mapping[str, Any]]
    """Parameter -> values, as in a job."""
    last_step: ClassVar[str]
    """The step before training whose result the trials need; later steps are not run."""
    scored_by: ClassVar[str]
    """The name of the score in the report."""

    @abstractmethod
    def defaults(self) -> Sequence[Strict]:
        """The job's configuration of every expert."""

    @abstractmethod
    def suggestion(self, samples: int) -> Mapping[str, Any]:
        """A good guess to start from, for an expert with so many samples of its own class."""

    @abstractmethod
    def start(
        self, trials: Sequence[ExpertTrial], seed: int, data: SearchData, device: torch.device, together: bool
    ) -> RunningTrials:
        """The trials, freshly initialised from `seed`; together: trained in banks, otherwise one after another."""
