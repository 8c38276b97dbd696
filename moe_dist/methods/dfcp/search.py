"""The search for each expert's hyper-parameters (Table 1): trials are trained as alone.py trains, and scored by F1.

A trial learns "mine or not" on its cluster's pseudo-labelled images and a portion of the others. It is scored by the F1
of "mine" on the validation split, with its true labels. The test split is never looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from moe_dist.bank.bank import Bank
from moe_dist.bank.batches import ImagesOf, Lesson
from moe_dist.bank.stack import Member
from moe_dist.data.augment.augment import normalise
from moe_dist.methods.dfcp.alone import chosen_samples
from moe_dist.methods.dfcp.config import AloneConfig, ExpertConfig
from moe_dist.methods.dfcp.network import expert_optimiser, widths
from moe_dist.methods.dfcp.views import EVALUATION_BATCH, Views
from moe_dist.methods.search import Candidate, Candidates, ExpertSearch, Score, SearchData
from moe_dist.models.experts import seeded_member
from moe_dist.models.lenet import LeNet
from moe_dist.optimisers import torch_optimiser

AUGMENTED_AT_ONCE = 1024
"""Images: what augmentation needs in between is much larger than they are."""
TREND_SAMPLES = (210, 600, 1400, 2200)
"""Sizes of clusters at which Table 1's trend is read off."""
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
        """As the job has them."""
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

    def candidates(
        self, candidates: Sequence[Candidate], seed: int, data: SearchData, device: torch.device, together: bool
    ) -> Candidates:
        """A bank of them all, or each a network and optimiser of torch's by itself."""
        lessons = _Lessons(sorted({each.expert for each in candidates}), self._alone, data, seed, device)
        kind = _InABank if together else _OneByOne
        return kind(candidates, lessons, seed, data, device)


class _Lessons:
    """What each of some experts is taught in every epoch: as alone.py teaches it, whatever is tried."""

    def __init__(
        self, experts: Sequence[int], config: AloneConfig, data: SearchData, seed: int, device: torch.device
    ) -> None:
        self._views = Views(data.train, data.config, seed)
        self._config, self._classes = config, data.training_set.labels
        self._randoms = {expert: np.random.default_rng([seed, expert]) for expert in experts}
        self._rows = {
            expert: chosen_samples(self._classes, expert, config.others_fraction, random)
            for expert, random in self._randoms.items()
        }
        self._held_rows = np.unique(np.concatenate(list(self._rows.values())))
        self._samples = data.training_set.samples[self._held_rows]
        self._images = data.train.uint8(self._samples).to(device)
        self._epoch = 0

    def next_epoch(self) -> dict[int, Lesson]:
        """Expert -> its rows in the order of training, and 1 for those of its own class."""
        lessons = {}
        for expert, random in self._randoms.items():
            rows = self._rows[expert][random.permutation(len(self._rows[expert]))]
            lessons[expert] = Lesson(rows, (self._classes[rows] == expert).astype(np.float32))
        self._epoch += 1
        return lessons

    def images(self, rows: np.ndarray) -> Tensor:
        """The augmented images of `rows` [n] in this epoch, [n, 3, S, S], on the device."""
        held = np.searchsorted(self._held_rows, rows)
        return self._views.augmented(self._images[held], self._samples[held], self._epoch - 1, self._config.augment)

    def all_images(self) -> ImagesOf:
        """`images` for many candidates, which all see the same ones: each is augmented once an epoch."""
        rows = self._held_rows
        parts = [
            self.images(rows[start : start + AUGMENTED_AT_ONCE]) for start in range(0, len(rows), AUGMENTED_AT_ONCE)
        ]
        # Channels last, as a bank's convolutions want them: they are gathered many times.
        augmented = torch.cat(parts).permute(0, 2, 3, 1).contiguous()
        return lambda wanted: augmented[np.searchsorted(rows, wanted)].permute(0, 3, 1, 2)


class _InABank:
    """Candidates trained together. Two of one expert are taught the same images in the same order."""

    def __init__(
        self, candidates: Sequence[Candidate], lessons: _Lessons, seed: int, data: SearchData, device: torch.device
    ) -> None:
        self._candidates, self._lessons, self._data = candidates, lessons, data
        members = [
            Member(
                widths(each.config),
                expert_optimiser(each.config),
                each.config.batch_size,
                _initialised(each, seed, data).state_dict(),
                course=each.expert,
            )
            for each in candidates
        ]
        self._bank = Bank(members, data.config.image_size, device=device)

    def train_epoch(self) -> None:
        """One epoch of all that were not dropped."""
        lessons = self._lessons.next_epoch()
        of_members = {number: lessons[self._candidates[number].expert] for number in self._bank.members}
        self._bank.train_epoch(of_members, self._lessons.all_images())

    def scores(self) -> dict[int, Score]:
        """F1 of all that were not dropped, on the validation split."""
        numbers = self._bank.members
        experts = [self._candidates[number].expert for number in numbers]
        batch = max(16, EVALUATION_BATCH // len(numbers))
        return dict(
            zip(numbers, _f1_scores(experts, lambda images: self._bank.logits(images)[..., 0], self._data, batch))
        )

    def drop(self, numbers: Collection[int]) -> None:
        """End the training of these."""
        self._bank.drop(numbers)


@dataclass
class _Alone:
    network: LeNet
    optimiser: torch.optim.Optimizer


class _OneByOne:
    """Candidates trained one after another, batch by batch, each by its own optimiser of torch's."""

    def __init__(
        self, candidates: Sequence[Candidate], lessons: _Lessons, seed: int, data: SearchData, device: torch.device
    ) -> None:
        self._candidates, self._lessons, self._data, self._device = candidates, lessons, data, device
        self._alive: dict[int, _Alone] = {}
        for number, each in enumerate(candidates):
            network = _initialised(each, seed, data).to(device)
            self._alive[number] = _Alone(network, torch_optimiser(network.parameters(), expert_optimiser(each.config)))

    def train_epoch(self) -> None:
        """One epoch of all that were not dropped."""
        lessons = self._lessons.next_epoch()
        for number, alone in self._alive.items():
            self._train(alone, lessons[self._candidates[number].expert], self._candidates[number].config.batch_size)

    def _train(self, alone: _Alone, lesson: Lesson, batch_size: int) -> None:
        targets = torch.from_numpy(lesson.targets).to(self._device)
        for start in range(0, len(targets), batch_size):
            rows = slice(start, start + batch_size)
            logits = alone.network(self._lessons.images(lesson.samples[rows])).squeeze(1)
            functional.binary_cross_entropy_with_logits(logits, targets[rows]).backward()
            alone.optimiser.step()
            alone.optimiser.zero_grad()

    def scores(self) -> dict[int, Score]:
        """F1 of all that were not dropped, on the validation split."""
        return {number: self._score(number, alone.network) for number, alone in self._alive.items()}

    def _score(self, number: int, network: LeNet) -> Score:
        expert = self._candidates[number].expert
        logits = partial(_logits_of_one, network, self._device)
        return _f1_scores([expert], logits, self._data, EVALUATION_BATCH)[0]

    def drop(self, numbers: Collection[int]) -> None:
        """End the training of these."""
        self._alive = {number: alone for number, alone in self._alive.items() if number not in numbers}


def _initialised(candidate: Candidate, seed: int, data: SearchData) -> LeNet:
    size = data.config.image_size
    return cast(LeNet, seeded_member(lambda: LeNet(widths(candidate.config), 1, size), candidate.expert, seed))


@torch.no_grad()
def _logits_of_one(network: LeNet, device: torch.device, images: Tensor) -> Tensor:
    """[1, n]"""
    return network(images.to(device)).squeeze(1)[None]


def _f1_scores(experts: Sequence[int], logits_of: Any, data: SearchData, batch: int) -> list[Score]:
    """A score for each of the `experts`; logits_of: images [n, 3, S, S] -> logits [experts, n]."""
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
    return [
        Score(f1(*column), loss / len(data.val_samples)) for column, loss in zip(counts.T.tolist(), losses.tolist())
    ]


def f1(hits: float, false_alarms: float, misses: float) -> float:
    """2 hits / (2 hits + false alarms + misses); 0 where nothing was there and nothing was claimed."""
    return 2 * hits / (2 * hits + false_alarms + misses) if hits else 0.0
