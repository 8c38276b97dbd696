"""Experts by themselves: each learns "mine or not" on its cluster and a portion of the others, several in one bank.

Letters in shapes: B samples of a batch, N samples of the training set, E experts, S image side.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from moe_dist.bank.bank import Bank
from moe_dist.bank.batches import EpochData, ImagesOf
from moe_dist.bank.stack import Member
from moe_dist.data.batch import DatasetInfo
from moe_dist.errors import UserError
from moe_dist.methods.dfcp.config import AloneConfig, DfcpConfig, ExpertConfig, expert_list
from moe_dist.methods.dfcp.network import expert_costs
from moe_dist.methods.dfcp.steps import members
from moe_dist.methods.dfcp.views import Views
from moe_dist.methods.phases import Step, StepResult, TaskContext, Workspace
from moe_dist.models.experts import seeded_member
from moe_dist.models.lenet import LeNet
from moe_dist.settings.schema import settings_of

STEP = "experts"
AUGMENTED_AT_ONCE = 1024
"""Images: augmentation needs several times their memory for what it computes in between."""


def train_experts_alone(config: DfcpConfig, info: DatasetInfo) -> Step:
    """The step that trains every expert by itself, several in a task: a bank."""
    experts = expert_list(config.experts, info.classes)
    settings: dict[str, Any] = {
        "alone": settings_of(config.alone),
        "experts": [settings_of(expert) for expert in experts],
    }
    return Step(STEP, f"{len(experts)} experts, each alone", partial(_train_all, config.alone, experts), settings)


def expert_weights(results: Mapping[str, StepResult], expert: int) -> dict[str, Tensor] | None:
    """The weights an expert had after its training alone, by parameter name; None where it was not trained alone."""
    if STEP not in results:
        return None
    prefix = f"{expert}/"
    arrays = results[STEP].arrays
    return {name[len(prefix) :]: torch.from_numpy(arrays[name]) for name in arrays if name.startswith(prefix)}


@dataclass(frozen=True)
class _AloneTask:
    """What all tasks of the step share: samples [N] of training, as numbers in `views.images`, and classes [N]."""

    views: Views
    config: AloneConfig
    experts: tuple[ExpertConfig, ...]
    samples: np.ndarray
    classes: np.ndarray


def _train_all(config: AloneConfig, experts: tuple[ExpertConfig, ...], workspace: Workspace) -> StepResult:
    """Weights as arrays "<expert>/<parameter>"; the experts of every bank and its seconds as values."""
    samples, classes = members(workspace.results, workspace.labels)
    views = Views(workspace.images, workspace.data, workspace.seed)
    task = _AloneTask(views, config, experts, samples, classes)
    banks = banks_of(expert_costs(experts, 1, workspace.data.image_size), config.bank)
    trained = list(workspace.run_tasks(_train_bank, banks, task))
    arrays = {
        f"{expert}/{name}": array
        for bank, (weights, _) in zip(banks, trained)
        for expert, parameters in zip(bank, weights)
        for name, array in parameters.items()
    }
    return StepResult({"banks": banks, "seconds": [seconds for _, seconds in trained]}, arrays)


def banks_of(costs: Sequence[float], largest: int) -> list[list[int]]:
    """The experts, by their costs [E], in as few banks of at most `largest` as possible, all of about the same cost."""
    count = -(-len(costs) // largest)
    dearest_first = sorted(range(len(costs)), key=lambda expert: -costs[expert])
    return [sorted(dearest_first[bank::count]) for bank in range(count)]


def _train_bank(
    task: _AloneTask, experts: Sequence[int], context: TaskContext
) -> tuple[list[dict[str, np.ndarray]], float]:
    """Train `experts` together, each as if it were alone; their weights, and the seconds that all of them took.

    Raises UserError where an expert diverged.
    """
    started = time.perf_counter()
    size, seed = task.views.data.image_size, task.views.seed
    bank = Bank(
        [bank_member(task.experts[expert], expert, size, seed) for expert in experts], size, device=context.device
    )
    data = ExpertData(experts, task.config, task.views, task.samples, task.classes, torch.device("cpu"))
    for epoch in range(task.config.epochs):
        by_expert = data.next_epoch()
        bank.train_epoch({member: by_expert[expert] for member, expert in enumerate(experts)}, data.images)
        context.progress(epoch + 1, task.config.epochs)
    if diverged := bank.diverged():
        expert = experts[diverged[0]]
        raise UserError(
            f"expert {expert} diverged by itself, at learning_rate {task.experts[expert].learning_rate:g}; lower it "
            "in method.experts"
        )
    weights = [{name: value.cpu().numpy() for name, value in bank.weights(member).items()} for member in bank.members]
    return weights, time.perf_counter() - started


def initial_network(config: ExpertConfig, expert: int, image_size: int, seed: int) -> LeNet:
    """The binary network of an expert before its training, initialised from (seed, expert)."""
    return cast(LeNet, seeded_member(lambda: LeNet(config.widths, 1, image_size), expert, seed))


def bank_member(config: ExpertConfig, expert: int, image_size: int, seed: int, data_group: int | None = None) -> Member:
    """An expert as a member of a bank."""
    weights = initial_network(config, expert, image_size, seed).state_dict()
    return Member(config.widths, config.optimiser_config, config.batch_size, weights, data_group)


class ExpertData:
    """What each of some experts trains on alone, epoch by epoch: its samples, their order and augmented images.

    experts: their numbers; samples [N]: the training's, as numbers in `views.images`; classes [N]: their classes. A row
    is a number from 0 to N - 1. The random numbers follow from (views.seed, expert), so an expert's data do not depend
    on the other experts. All images that are needed are decoded once, here, and held on `device`.
    """

    def __init__(
        self,
        experts: Sequence[int],
        config: AloneConfig,
        views: Views,
        samples: np.ndarray,
        classes: np.ndarray,
        device: torch.device,
    ) -> None:
        self._views, self._config, self._classes = views, config, classes
        self._randoms = {expert: np.random.default_rng([views.seed, expert]) for expert in experts}
        self._rows = {
            expert: chosen_samples(classes, expert, config.others_fraction, random)
            for expert, random in self._randoms.items()
        }
        self._held_rows = np.unique(np.concatenate(list(self._rows.values())))
        self._samples = samples[self._held_rows]
        self._images = views.images.uint8(self._samples).to(device)
        self._epoch = -1

    def next_epoch(self) -> dict[int, EpochData]:
        """Begin the next epoch; every expert's rows in the order of training, and targets: 1 for its own class."""
        self._epoch += 1
        data = {}
        for expert, random in self._randoms.items():
            rows = self._rows[expert][random.permutation(len(self._rows[expert]))]
            data[expert] = EpochData(rows, (self._classes[rows] == expert).astype(np.float32))
        return data

    def images(self, rows: np.ndarray) -> Tensor:
        """The augmented images of `rows` [B] in this epoch, [B, 3, S, S], on the device."""
        held = np.searchsorted(self._held_rows, rows)
        return self._views.augmented(self._images[held], self._samples[held], self._epoch, self._config.augment)

    def shared_images(self) -> ImagesOf:
        """`images` for many networks that see the same ones: each image is augmented once in this epoch."""
        held = self._held_rows
        parts = [
            self.images(held[start : start + AUGMENTED_AT_ONCE]) for start in range(0, len(held), AUGMENTED_AT_ONCE)
        ]
        # Channels last, as a bank's convolutions want them: they are gathered many times.
        augmented = torch.cat(parts).permute(0, 2, 3, 1).contiguous()
        return lambda rows: augmented[np.searchsorted(held, rows)].permute(0, 3, 1, 2)


def chosen_samples(classes: np.ndarray, expert: int, others_fraction: float, random: np.random.Generator) -> np.ndarray:
    """Rows an expert trains on: all of its class, and `others_fraction` of the rest, as evenly over classes as can be.

    classes [N] -> sorted row numbers.
    """
    mine, rest = np.flatnonzero(classes == expert), np.flatnonzero(classes != expert)
    wanted = max(1, round(others_fraction * len(rest)))
    shuffled = random.permutation(rest)
    turn = np.zeros(len(shuffled), np.int64)  # each class's first image, then each class's second, ...
    for label in np.unique(classes[shuffled]):
        of_class = classes[shuffled] == label
        turn[of_class] = np.arange(of_class.sum())
    others = shuffled[np.argsort(turn, kind="stable")[:wanted]]
    return np.sort(np.concatenate([mine, others]))
