"""Experts by themselves: each learns "mine or not" on its cluster and a portion of the others, all at the same time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from moe_dist.methods.base import DatasetInfo, Step, StepResult, TaskContext, Workspace
from moe_dist.methods.dfcp.config import AloneConfig, DfcpConfig, ExpertConfig, expert_list
from moe_dist.methods.dfcp.network import expert_optimiser, widths
from moe_dist.methods.dfcp.steps import members
from moe_dist.methods.dfcp.views import Views
from moe_dist.models.experts import seeded_member
from moe_dist.models.lenet import LeNet
from moe_dist.optimisers import torch_optimiser

STEP = "experts"


def train_experts_alone(config: DfcpConfig, info: DatasetInfo) -> Step:
    """The step that trains every expert as a task of its own."""
    experts = expert_list(config.experts, info.classes)
    settings: dict[str, Any] = {
        "alone": config.alone.model_dump(),
        "experts": [expert.model_dump() for expert in experts],
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
    """Weights as arrays "<expert>/<parameter>", seconds per expert as values."""
    samples, classes = members(workspace.results, workspace.labels)
    views = Views(workspace.images, workspace.data, workspace.seed)
    task = _AloneTask(views, config, experts, samples, classes, workspace.seed)
    trained = list(workspace.run_tasks(_train_one, range(len(experts)), task))
    arrays = {
        f"{expert}/{name}": array for expert, (weights, _) in enumerate(trained) for name, array in weights.items()
    }
    return StepResult({"seconds": [seconds for _, seconds in trained]}, arrays)


def _train_one(task: _AloneTask, expert: int, context: TaskContext) -> tuple[dict[str, np.ndarray], float]:
    """Train one expert on its cluster against a portion of the others (Eq 14); its weights and the seconds it took."""
    started = time.perf_counter()
    config = task.experts[expert]
    network = seeded_member(lambda: LeNet(widths(config), 1, task.views.data.image_size), expert, task.seed).to(
        context.device
    )
    optimiser = torch_optimiser(network.parameters(), expert_optimiser(config))
    random = np.random.default_rng([task.seed, expert])
    chosen = chosen_samples(task.classes, expert, task.config.others_fraction, random)
    samples, mine = task.samples[chosen], (task.classes[chosen] == expert).astype(np.float32)
    images, targets = task.views.images.uint8(samples), torch.from_numpy(mine).to(context.device)
    for epoch in range(task.config.epochs):
        order = random.permutation(len(samples))
        for start in range(0, len(order), config.batch_size):
            rows = order[start : start + config.batch_size]
            views = task.views.augmented(images[rows], samples[rows], epoch, task.config.augment).to(context.device)
            logits = network(views).squeeze(1)
            functional.binary_cross_entropy_with_logits(logits, targets[rows]).backward()
            optimiser.step()
            optimiser.zero_grad()
        context.progress(epoch + 1, task.config.epochs)
    weights = {name: value.cpu().numpy() for name, value in network.state_dict().items()}
    return weights, time.perf_counter() - started


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
