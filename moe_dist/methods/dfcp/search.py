"""The search for each expert's hyper-parameters (Table 1): trials are trained as alone.py trains, and scored by F1.

A trial learns "mine or not" on its cluster's pseudo-labelled images and a portion of the others. It is scored by the F1
of "mine" on the validation split, with its true labels. The test split is never looked at.

Letters in shapes: B samples of a batch, S image side.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from moe_dist.bank.bank import Bank
from moe_dist.bank.batches import EpochData
from moe_dist.data.augment.augment import normalise
from moe_dist.methods.dfcp.alone import ExpertData, bank_member, initial_network
from moe_dist.methods.dfcp.config import AloneConfig, ExpertConfig
from moe_dist.methods.dfcp.views import IMAGES_AT_ONCE, Views
from moe_dist.methods.search import ExpertSearch, ExpertTrial, RunningTrials, Score, SearchData
from moe_dist.optimisers import torch_optimiser

TREND_SAMPLES = (210, 600, 1400, 2200)
"""Sizes of clusters for which TREND holds what Table 1 suggests; values between them are interpolated."""
TREND = {
    "conv1": (6, 9, 14, 11),
    "conv2": (16, 19, 29, 22),
    "fc1": (122, 126, 134, 142),
    "fc2": (85, 87, 91, 95),
    "learning_rate": (4.0e-3, 3.0e-3, 2.9e-3, 1.9e-3),
}


class DfcpExpertSearch(ExpertSearch):
    """Searches over Table 1's seven hyper-parameters of every expert."""

    space: ClassVar[Mapping[str, Any]] = {
        "conv1": {"low": 4, "high": 20},
        "conv2": {"low": 12, "high": 36},
        "fc1": {"low": 100, "high": 160},
        "fc2": {"low": 70, "high": 110},
        "optimiser": ["sgd", "rmsprop", "adam"],
        "learning_rate": {"low": 5e-4, "high": 1e-2, "log": True},
        "batch_size": [16, 32, 64],
    }
    last_step = "pseudo_labels"
    scored_by = "F1 of an expert's own class against all others"

    def __init__(self, experts: Sequence[ExpertConfig], alone: AloneConfig) -> None:
        self._experts, self._alone = experts, alone

    def defaults(self) -> Sequence[ExpertConfig]:
        """See ExpertSearch."""
        return self._experts

    def suggestion(self, samples: int) -> Mapping[str, Any]:
        """Table 1's trend: more samples, wider layers, lower rate, larger batches; SGD, then Adam, then RMSprop."""
        read = {name: float(np.interp(samples, TREND_SAMPLES, values)) for name, values in TREND.items()}
        counts = {name: round(value) for name, value in read.items() if name != "learning_rate"}
        return {
            **counts,
            "learning_rate": read["learning_rate"],
            "optimiser": "sgd" if samples < 480 else "adam" if samples < 1750 else "rmsprop",
            "batch_size": 16 if samples < 400 else 32 if samples < 700 else 64,
        }

    def start(
        self, trials: Sequence[ExpertTrial], seed: int, data: SearchData, device: torch.device, together: bool
    ) -> RunningTrials:
        """A bank of all trials, or a network and an optimiser of torch's for each."""
        kind = _TrialsInABank if together else _TrialsOneByOne
        return kind(trials, self._alone, seed, data, device)


def _training_data(
    trials: Sequence[ExpertTrial], config: AloneConfig, seed: int, data: SearchData, device: torch.device
) -> ExpertData:
    """What the trials' experts train on: the same as in the step that trains them alone, whatever is tried."""
    experts = sorted({trial.expert for trial in trials})
    views = Views(data.train, data.config, seed)
    return ExpertData(experts, config, views, data.training_set.samples, data.training_set.labels, device)


class _TrialsInABank:
    """Trials trained together. Two of one expert see the same images in the same order."""

    def __init__(
        self, trials: Sequence[ExpertTrial], config: AloneConfig, seed: int, data: SearchData, device: torch.device
    ) -> None:
        self._trials, self._data = trials, data
        self._training_data = _training_data(trials, config, seed, data, device)
        size = data.config.image_size
        members = [bank_member(trial.config, trial.expert, size, seed, data_group=trial.expert) for trial in trials]
        self._bank = Bank(members, size, device=device)

    def train_epoch(self) -> None:
        """See RunningTrials."""
        by_expert = self._training_data.next_epoch()
        epoch = {number: by_expert[self._trials[number].expert] for number in self._bank.members}
        self._bank.train_epoch(epoch, self._training_data.shared_images())

    def scores(self) -> dict[int, Score]:
        """See RunningTrials."""
        numbers = self._bank.members
        experts = [self._trials[number].expert for number in numbers]
        scores = _f1_scores(experts, self._bank.logits, self._data, max(16, IMAGES_AT_ONCE // len(numbers)))
        return dict(zip(numbers, scores))

    def drop(self, numbers: Collection[int]) -> None:
        """See RunningTrials."""
        self._bank.drop(numbers)


class _TrialsOneByOne:
    """Trials trained one after another, each by its own optimiser of torch's."""

    def __init__(
        self, trials: Sequence[ExpertTrial], config: AloneConfig, seed: int, data: SearchData, device: torch.device
    ) -> None:
        self._trials, self._data, self._device = trials, data, device
        self._training_data = _training_data(trials, config, seed, data, device)
        self.networks = {
            number: initial_network(trial.config, trial.expert, data.config.image_size, seed).to(device)
            for number, trial in enumerate(trials)
        }
        self._optimisers = {
            number: torch_optimiser(network.parameters(), trials[number].config.optimiser_config)
            for number, network in self.networks.items()
        }

    def train_epoch(self) -> None:
        """See RunningTrials."""
        by_expert = self._training_data.next_epoch()
        for number in self.networks:
            self._train(number, by_expert[self._trials[number].expert])

    def _train(self, number: int, epoch: EpochData) -> None:
        network, optimiser = self.networks[number], self._optimisers[number]
        targets = torch.from_numpy(epoch.targets).to(self._device)
        batch_size = self._trials[number].config.batch_size
        for start in range(0, len(targets), batch_size):
            rows = slice(start, start + batch_size)
            logits = network(self._training_data.images(epoch.samples[rows])).squeeze(1)
            functional.binary_cross_entropy_with_logits(logits, targets[rows]).backward()
            optimiser.step()
            optimiser.zero_grad()

    def scores(self) -> dict[int, Score]:
        """See RunningTrials."""
        experts = [self._trials[number].expert for number in self.networks]

        def logits_of(images: Tensor) -> Tensor:
            return torch.stack([network(images.to(self._device)).squeeze(1) for network in self.networks.values()])

        return dict(zip(self.networks, _f1_scores(experts, logits_of, self._data, IMAGES_AT_ONCE)))

    def drop(self, numbers: Collection[int]) -> None:
        """See RunningTrials."""
        for number in numbers:
            del self.networks[number], self._optimisers[number]


@torch.no_grad()
def _f1_scores(
    experts: Sequence[int], logits_of: Callable[[Tensor], Tensor], data: SearchData, batch: int
) -> list[Score]:
    """The validation score of each of the `experts`; logits_of: images [B, 3, S, S] -> logits [experts, B]."""
    counts = torch.zeros(3, len(experts), dtype=torch.float64)
    losses = torch.zeros(len(experts), dtype=torch.float64)
    own = torch.tensor(experts)[:, None]
    for start in range(0, len(data.val_samples), batch):
        samples = data.val_samples[start : start + batch]
        logits = logits_of(normalise(data.val.uint8(samples), data.config.mean, data.config.std)).double().cpu()
        mine = torch.from_numpy(data.val_labels[start : start + batch]) == own
        chosen = logits > 0
        counts += torch.stack([(chosen & mine).sum(1), (chosen & ~mine).sum(1), (~chosen & mine).sum(1)])
        losses += functional.binary_cross_entropy_with_logits(logits, mine.double(), reduction="none").sum(1)
    means = losses / len(data.val_samples)
    return [Score(f1(*column), loss) for column, loss in zip(counts.T.tolist(), means.tolist())]


def f1(hits: float, false_alarms: float, misses: float) -> float:
    """2 hits / (2 hits + false alarms + misses); 0 where nothing was there and nothing was claimed."""
    return 2 * hits / (2 * hits + false_alarms + misses) if hits else 0.0
