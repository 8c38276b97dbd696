"""The backends of a job's searches, as a worker opens them: from the packed task, with the data kept open."""

from __future__ import annotations

from typing import Any

import torch

from moe_dist.data.batch import TrainingSet
from moe_dist.data.opened.opened import OpenedData, open_data
from moe_dist.methods.base import Method
from moe_dist.methods.search import SearchData
from moe_dist.record.results import Results
from moe_dist.train.task import TrainingTask, open_method
from moe_dist.tune.runner import ExpertBackend
from moe_dist.tune.studies import ExpertStudies, tune_settings
from moe_dist.tune.whole_method import MethodBackend


def open_expert_backend(packed: dict[str, Any], device: torch.device) -> ExpertBackend:
    """For rounds of experts' studies."""
    task = TrainingTask.unpack(packed)
    data = open_data(task.job.data, task.job.seed, task.cache, task.shards)
    data.bad_samples.write_to(task.bad_samples)
    method = open_method(task.job, task.label, data)
    material = SearchData(
        config=data.config,
        train=data.train.images,
        training_set=visible_training_set(method, data, Results(task.steps)),
        val=data.val.images,
        val_samples=data.val_samples,
        val_labels=data.val.labels[data.val_samples],
    )
    return ExpertBackend(ExpertStudies(task.job, method).search, material, tune_settings(task.job), device)


def open_method_backend(packed: dict[str, Any], device: torch.device) -> MethodBackend:
    """For rounds of the method's study."""
    task = TrainingTask.unpack(packed)
    return MethodBackend(task, tune_settings(task.job).rung_factor, device)


def visible_training_set(method: Method, data: OpenedData, results: Results) -> TrainingSet:
    """What the method's training sees, of the labels that it may see."""
    return method.training_set(results, method.visible_labels(results, data.train.labels), data.train_samples)
