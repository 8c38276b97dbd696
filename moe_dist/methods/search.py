"""What a method with experts that are trained alone gives a search for each expert's hyper-parameters."""

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

    training_set: samples of `train` with the labels that the method may see; val_samples [V] of `val`, with their true
    labels val_labels [V].
    """

    config: DataConfig
    train: Images
    training_set: TrainingSet
    val: Images
    val_samples: np.ndarray
    val_labels: np.ndarray


@dataclass(frozen=True)
class Candidate:
    """A configuration of one expert that is to be tried."""

    expert: int
    config: Any


@dataclass(frozen=True)
class Score:
    """value: in [0, 1], larger is better; loss: on the same samples. Not finite where the training diverged."""

    value: float
    loss: float


class Candidates(Protocol):
    """Candidates in training, each as if it were alone; they go by their numbers, from 0."""

    def train_epoch(self) -> None:
        """One epoch of all that were not dropped."""

    def scores(self) -> dict[int, Score]:
        """The validation score of all that were not dropped."""

    def drop(self, numbers: Collection[int]) -> None:
        """End the training of these."""


class ExpertSearch(ABC):
    """How a method's experts are tried one configuration at a time."""

    space: ClassVar[Mapping[str, Any]]
    """Parameter -> values, as in a job."""
    last_step: ClassVar[str]
    """The step before training whose result the trials need; later ones are not run."""
    scored_by: ClassVar[str]
    """What a score is, in words for the report."""

    @abstractmethod
    def defaults(self) -> Sequence[Strict]:
        """The job's configuration of every expert."""

    @abstractmethod
    def suggestion(self, samples: int) -> Mapping[str, Any]:
        """A good guess for an expert with so many samples of its own, to start from."""

    @abstractmethod
    def candidates(
        self, candidates: Sequence[Candidate], seed: int, data: SearchData, device: torch.device, together: bool
    ) -> Candidates:
        """The candidates, freshly initialised from `seed`; together: in banks, else one after another."""
