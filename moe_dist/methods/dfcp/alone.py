"""Experts by themselves: each learns "mine or not" on its cluster and a portion of the others, all at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_dist.bank.bank import Bank
from moe_dist.bank.batches import Lesson
from moe_dist.bank.stack import Member
from moe_dist.data.batch import DatasetInfo
from moe_dist.errors import UserError
from moe_dist.methods.dfcp.config import AloneConfig, DfcpConfig, ExpertConfig, expert_list
from moe_dist.methods.dfcp.network import expert_costs, expert_optimiser, widths
from moe_dist.methods.dfcp.steps import members
from moe_dist.methods.dfcp.views import Views
from moe_dist.methods.phases import Step, StepResult, TaskContext, Workspace
from moe_dist.models.experts import seeded_member
from moe_dist.models.lenet import LeNet
from moe_dist.settings.schema import settings_of

STEP = "experts"


def train_experts_alone(config: DfcpConfig, info: DatasetInfo) -> Step:
    """The step that trains every expert by itself, several in a task: a bank."""
    experts = expert_list(config.experts, info.classes)
    settings: dict[str, Any] = {
        "alone": settings_of(config.alone),
        "experts": [settings_of(expert) for expert in experts],
    }
    return Step(STEP, f"{len(experts)} experts, each alone", partial(_train_all, config.alone, experts), settings)


def expert_weights(results: Mapping[str, StepResult], expert: int) -> dict[str, Tensor] | None:
    """The weights an expert left its training alone with, by parameter name; None where that has not happened."""
    if STEP not in results:
        return None
    prefix = f"{expert}/"
    arrays = results[STEP].arrays
    return {name[len(prefix) :]: torch.from_numpy(arrays[name]) for name in arrays if name.startswith(prefix)}


@dataclass(frozen=True)
class _AloneTask:
    views: Views
    config: AloneConfig
    experts: tuple[ExpertConfig, ...]
    samples: np.ndarray
    classes: np.ndarray
    seed: int


def _train_all(config: AloneConfig, experts: tuple[ExpertConfig, ...], workspace: Workspace) -> StepResult:
    """Weights as arrays "<expert>/<parameter>"; the experts of every bank and its seconds as values."""
    samples, classes = members(workspace.results, workspace.labels)
    views = Views(workspace.images, workspace.data, workspace.seed)
    task = _AloneTask(views, config, experts, samples, classes, workspace.seed)
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
    """The experts, by their costs [E], in as few banks of at most `largest` as can be, all of about the same work."""
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
    bank = Bank([_member(task, expert) for expert in experts], task.views.data.image_size, device=context.device)
    randoms = [np.random.default_rng([task.seed, expert]) for expert in experts]
    chosen = [
        chosen_samples(task.classes, expert, task.config.others_fraction, random)
        for expert, random in zip(experts, randoms)
    ]
    images_of = _held_images(task, np.unique(np.concatenate(chosen)))
    for epoch in range(task.config.epochs):
        lessons = {
            member: _lesson(task, expert, rows[random.permutation(len(rows))])
            for member, (expert, rows, random) in enumerate(zip(experts, chosen, randoms))
        }
        bank.train_epoch(lessons, partial(images_of, epoch))
        context.progress(epoch + 1, task.config.epochs)
    if diverged := bank.diverged():
        expert = experts[diverged[0]]
        raise UserError(
            f"expert {expert} diverged by itself, at learning_rate {task.experts[expert].learning_rate:g}; lower it "
            "in method.experts"
        )
    weights = [{name: value.cpu().numpy() for name, value in bank.weights(member).items()} for member in bank.members]
    return weights, time.perf_counter() - started


def _member(task: _AloneTask, expert: int) -> Member:
    config = task.experts[expert]
    network = seeded_member(lambda: LeNet(widths(config), 1, task.views.data.image_size), expert, task.seed)
    return Member(widths(config), expert_optimiser(config), config.batch_size, network.state_dict())


def _lesson(task: _AloneTask, expert: int, rows: np.ndarray) -> Lesson:
    """An epoch of an expert that sees `rows` in this order; its target is 1 for its own class."""
    return Lesson(rows, (task.classes[rows] == expert).astype(np.float32))


def _held_images(task: _AloneTask, rows: np.ndarray) -> Callable[[int, np.ndarray], Tensor]:
    """(epoch, some of the sorted `rows`) -> their augmented images; read once here, for a disk decodes every time."""
    images = task.views.images.uint8(task.samples[rows])

    def images_of(epoch: int, wanted: np.ndarray) -> Tensor:
        held = images[np.searchsorted(rows, wanted)]
        return task.views.augmented(held, task.samples[wanted], epoch, task.config.augment)

    return images_of


def chosen_samples(classes: np.ndarray, expert: int, others_fraction: float, random: np.random.Generator) -> np.ndarray:
    """Rows an expert trains on: all of its class, and `others_fraction` of the rest, as evenly over classes as can be.

    classes [n] -> sorted row numbers.
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
