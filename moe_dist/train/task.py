"""A training as it is sent to workers (names and paths), and as a worker opens it (method, network, data)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moe_dist.data.batch import TrainingSet
from moe_dist.data.opened.opened import OpenedData, open_data
from moe_dist.data.stream.stream import Stream
from moe_dist.engine.choose import makers
from moe_dist.errors import UserError
from moe_dist.job import Job, parse_job
from moe_dist.methods.base import Method, Stage
from moe_dist.methods.registry import method_class
from moe_dist.record.fingerprints import decided_precision
from moe_dist.record.results import Results
from moe_dist.train.worker import Worker

EVALUATION_BATCH = 256
BAD_SAMPLES = "bad_samples"
"""A run directory's folder for notes of bad samples."""


@dataclass(frozen=True)
class TrainingTask:
    """One method's training within a run: all a worker on any node needs to find the rest.

    run, cache, folder and steps are absolute and on storage that every node reaches. shards: the folder or URL of the
    data's shards, which the driver found or built; folder: what the training leaves,
    another one as soon as something it depends on changes; steps: what the steps before it left, by name; start: the
    number, in the run's record, of the start that sends it.
    """

    job: Job
    label: str
    run: Path
    cache: Path
    shards: str
    folder: Path
    steps: Mapping[str, Path]
    start: int = 0

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints are."""
        return self.folder / "checkpoints"

    @property
    def bad_samples(self) -> Path:
        """Where whoever works on the run notes the samples it could not use."""
        return self.run / BAD_SAMPLES

    def pack(self) -> dict[str, Any]:
        """As plain values, to be sent."""
        return {
            "job": self.job.model_dump(mode="json"),
            "label": self.label,
            "run": str(self.run),
            "cache": str(self.cache),
            "shards": self.shards,
            "folder": str(self.folder),
            "steps": {name: str(folder) for name, folder in self.steps.items()},
            "start": self.start,
        }

    @staticmethod
    def unpack(packed: dict[str, Any]) -> TrainingTask:
        """The task that `pack` packed."""
        run, cache, folder = (Path(packed[name]) for name in ("run", "cache", "folder"))
        steps = {name: Path(step) for name, step in packed["steps"].items()}
        job = parse_job(packed["job"], "job")
        return TrainingTask(job, packed["label"], run, cache, packed["shards"], folder, steps, packed["start"])


@dataclass
class Training:
    """A task opened on one rank."""

    job: Job
    method: Method
    network: nn.Module
    data: OpenedData
    training_set: TrainingSet
    precision: str
    deepspeed: bool

    @property
    def total_steps(self) -> int:
        """Steps of all stages together."""
        samples = len(self.training_set.samples)
        return sum(stage.epochs * -(-samples // stage.batch_size) for stage in self.method.stages())

    def stream(self, stage: Stage, worker: Worker) -> Stream:
        """This rank's training batches of a stage."""
        return Stream(
            self.data.train.images,
            self.training_set,
            self.data.config,
            seed=self.job.seed,
            global_batch=stage.batch_size,
            rank=worker.rank,
            world=worker.world,
            augment=stage.augment,
            device=worker.device,
            shard_of=self.data.train.shard_of,
            sampling=stage.sampling,
            epochs=stage.epochs,
        )

    def validation(self, stage: Stage, worker: Worker, beside: Stream) -> Stream | None:
        """This rank's validation batches, in order and without augmentation; None where there is no validation.

        beside: the training's stream, which is at rest meanwhile.
        """
        samples = self.data.val_samples
        if not len(samples):
            return None
        share = -(-len(samples) // worker.world)
        return Stream(
            self.data.val.images,
            TrainingSet(samples, self.data.val.labels[samples]),
            self.data.config,
            seed=self.job.seed,
            global_batch=min(EVALUATION_BATCH, share) * worker.world,  # a small split is not padded to a whole batch
            rank=worker.rank,
            world=worker.world,
            augment=None,
            shuffle=False,
            device=worker.device,
            beside=beside,
        )


def open_training(task: TrainingTask, worker: Worker) -> Training:
    """Open the data, read the steps' results and build the network on the worker's device."""
    job = task.job
    data = open_data(job.data, job.seed, task.cache, task.shards)
    data.bad_samples.write_to(task.bad_samples)
    method = open_method(job, task.label, data)
    results = Results(task.steps)
    labels = method.visible_labels(results, data.train.labels)
    make = makers(job.parallel.expert, worker.deepspeed)
    network = method.build(make, results, job.seed).to(worker.device)
    if job.resources.compile:
        compile_calls(network, worker.device)
    return Training(
        job=job,
        method=method,
        network=network,
        data=data,
        training_set=method.training_set(results, labels, data.train_samples),
        precision=decided_precision(job.resources.precision, job.resources.gpus_per_worker),
        deepspeed=worker.deepspeed,
    )


def open_method(job: Job, label: str, data: OpenedData) -> Method:
    """The method of the job that carries `label`, checked against the dataset."""
    config = job.models[label]
    return method_class(config.name)(config, data.info)


def compile_calls(network: nn.Module, device: torch.device) -> None:
    """From now on, calls of `network` go through torch.compile; names of parameters and buffers stay.

    Raises UserError where the CPU's code cannot be compiled for want of a compiler.
    """
    if device.type == "cuda":
        network.compile(mode="reduce-overhead")  # CUDA graphs
        return
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UserError(
            f"resources.compile needs a C++ compiler, and there is no {compiler} on the path: install one or name it "
            "in CXX, or leave the setting out"
        )
    network.compile()
