"""A training as it is sent to workers (names and paths), and as a worker opens it (method, network and data)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moe_dist.data.batch import TrainingSet
from moe_dist.data.opened.opened import OpenedData, open_data
from moe_dist.data.storage.locks import locked
from moe_dist.engine.checkpoint import load_weights
from moe_dist.engine.choose import IN_ONE_PROCESS, makers
from moe_dist.errors import UserError
from moe_dist.job import Job, parse_job
from moe_dist.methods.base import Method
from moe_dist.methods.phases import Stage
from moe_dist.methods.registry import method_class
from moe_dist.models.makers import Makers
from moe_dist.places import NODE_CACHE
from moe_dist.record.fingerprints import decided_precision
from moe_dist.record.mirror import CHECKPOINTS, Mirror, working_folder
from moe_dist.record.restarts import FAULTS
from moe_dist.record.results import Results
from moe_dist.train.origin import Origin
from moe_dist.train.worker import Worker

EVALUATION_BATCH = 256
BAD_SAMPLES = "bad_samples"
"""The folder of a run directory in which bad samples are noted."""


@dataclass(frozen=True)
class TrainingTask:
    """A training of one model in a run, with all that a worker on any node needs.

    Paths are absolute and on storage that every node can reach; but the cache is what each node keeps for itself.

    model: the model's name in the job. run: the run directory. cache: the folder of decoded images. shards: the folder
    or URL of the shards. folder: the training's own folder, for its log and checkpoints; its name changes with
    everything that the training depends on. steps: the folders of the results of earlier steps, by name. trained: the
    last checkpoint of each earlier stage with a network of its own, by name. stages: the names of the stages to train;
    empty: all. start: the number of the current start in the run's record. origin: the finished model that the training
    begins from, None where it begins anew. url: where the run is kept, if nodes need not share its folder: each has one
    of its own then, below what it keeps, and paths below `run` are that node's. worker_counts: the numbers of workers
    that may train it, where it is elastic (train/elastic.py).
    """

    job: Job
    model: str
    run: Path
    cache: Path
    shards: str
    folder: Path
    steps: Mapping[str, Path] = field(default_factory=dict)
    trained: Mapping[str, Path] = field(default_factory=dict)
    stages: tuple[str, ...] = ()
    start: int = 0
    origin: Origin | None = None
    url: str | None = None
    worker_counts: tuple[int, ...] = ()

    @property
    def checkpoints(self) -> Path:
        """The folder of the training's checkpoints."""
        return self.folder / CHECKPOINTS

    def pack(self) -> dict[str, Any]:
        """The task as JSON values, to be sent to a worker."""
        return {
            "job": self.job.model_dump(mode="json"),
            "model": self.model,
            "run": str(self.run),
            "cache": str(self.cache),
            "shards": self.shards,
            "folder": self.in_run(self.folder),
            "steps": {name: self.in_run(folder) for name, folder in self.steps.items()},
            "trained": {name: self.in_run(folder) for name, folder in self.trained.items()},
            "stages": list(self.stages),
            "start": self.start,
            "origin": self.origin.pack() if self.origin else None,
            "url": self.url,
            "worker_counts": list(self.worker_counts),
        }

    def in_run(self, path: Path) -> str:
        """A path for another node: one below the run directory is relative to it."""
        return str(path.relative_to(self.run)) if path.is_relative_to(self.run) else str(path)

    @staticmethod
    def unpack(packed: dict[str, Any]) -> TrainingTask:
        """The task from what `pack` returned, with the paths of this node."""
        url, cache = packed["url"], Path(os.environ.get(NODE_CACHE, packed["cache"]))
        run = Path(packed["run"]) if url is None else working_folder(url, cache)
        folder = run / packed["folder"]
        steps, trained = ({key: run / path for key, path in packed[name].items()} for name in ("steps", "trained"))
        job, shards, stages = parse_job(packed["job"], "job"), packed["shards"], tuple(packed["stages"])
        origin = Origin.unpack(packed["origin"], cache) if packed["origin"] else None
        model, start, counts = packed["model"], packed["start"], tuple(packed["worker_counts"])
        return TrainingTask(job, model, run, cache, shards, folder, steps, trained, stages, start, origin, url, counts)

    def fetch_inputs(self, *checkpoints: Path, log: bool = False) -> None:
        """Fetch from the run's URL what the task reads: steps' results, networks of earlier stages, `checkpoints`.

        log: also the log that a training goes on with. A run in a folder that nodes share has it all.
        """
        if self.url is None:
            return
        mirror = Mirror(self.run, self.url)
        with locked(self.run.with_name(f".{self.run.name}.fetching")):
            for folder in (*self.steps.values(), *self.trained.values(), *checkpoints):
                mirror.pull(folder)
            if log:
                mirror.pull(self.folder, without=[CHECKPOINTS])

    def push_bad_samples(self, *further: Path) -> None:
        """Push to the run's URL what this node has noted of bad samples, and what it has in `further` folders."""
        if self.url is not None:
            kept = tuple(f"{self.in_run(folder)}/" for folder in (self.run / BAD_SAMPLES, *further))
            Mirror(self.run, self.url, lambda name: name.startswith(kept)).push()

    def fetch_outputs(self) -> None:
        """Fetch from the run's URL what a training has left on its nodes: log, checkpoints, notes of bad samples."""
        if self.url is not None:
            mirror = Mirror(self.run, self.url)
            mirror.pull(self.folder, without=[FAULTS])  # which this process writes
            mirror.pull(self.run / BAD_SAMPLES)


@dataclass
class Training:
    """A task as a rank has opened it: its stages, the network that they train, and the data."""

    task: TrainingTask
    method: Method
    stages: Sequence[Stage]
    network: nn.Module
    data: OpenedData
    results: Results
    precision: str
    deepspeed: bool
    _sets: dict[str, TrainingSet] = field(default_factory=dict, init=False)

    def training_set(self, stage: Stage) -> TrainingSet:
        """The training set of a stage."""
        if stage.name not in self._sets:
            choose = stage.training_set or self.method.training_set
            labels = self.method.visible_labels(self.results, self.data.train.labels)
            self._sets[stage.name] = choose(self.results, labels, self.data.train_samples)
        return self._sets[stage.name]

    def length(self, stage: Stage) -> tuple[int, int]:
        """(epochs, steps) of a stage, if it is not stopped early. The last epoch may be incomplete."""
        training_set = self.training_set(stage)
        if stage.order is None:
            an_epoch = -(-len(training_set.samples) // stage.batch_size)
        else:
            an_epoch = len(stage.order(training_set.labels, self.task.job.seed, 0, stage.batch_size))
        steps = stage.steps if stage.epochs is None else stage.epochs * an_epoch
        assert steps is not None
        return -(-steps // an_epoch), steps


def open_training(task: TrainingTask, worker: Worker) -> Training:
    """Open the data and the results of steps, and build the network on the worker's device."""
    job = task.job
    task.fetch_inputs(log=worker.rank == 0)
    if job.resources.deterministic and worker.device.type == "cuda":
        compute_the_same_bits()
    data = open_data(job.data, job.seed, task.cache, task.shards)
    data.bad_samples.write_to(task.run / BAD_SAMPLES)
    method = open_method(job, task.model, data)
    method.cache = task.cache
    stages = [stage for stage in method.stages() if stage.name in task.stages] if task.stages else method.stages()
    results = Results(task.steps)
    make = makers(job.parallel.expert, worker.deepspeed)
    network = build_network(task, method, stages[0], make, results).to(worker.device)
    if job.resources.compile:
        compile_calls(network, worker.device)
    precision = decided_precision(job.resources.precision, job.resources.gpus_per_worker)
    return Training(task, method, stages, network, data, results, precision, worker.deepspeed)


def build_network(task: TrainingTask, method: Method, stage: Stage, make: Makers, results: Results) -> nn.Module:
    """The initial network of a training whose first stage is `stage`."""
    if stage.build is None:
        return method.build(make, results, task.job.seed)
    return stage.build(make, results, lambda name: trained_network(task, method, name, results), task.job.seed)


def trained_network(task: TrainingTask, method: Method, name: str, results: Results) -> nn.Module:
    """The network that the earlier stage `name` trained, in eval mode on the CPU."""
    stage = next(stage for stage in method.stages() if stage.name == name)
    network = build_network(task, method, stage, IN_ONE_PROCESS, results)
    load_weights(task.trained[name], network)
    return network.eval()


def open_method(job: Job, model: str, data: OpenedData) -> Method:
    """The method of the job's model `model`. Raises UserError if it does not fit the dataset."""
    config = job.models[model]
    return method_class(config.name)(config, data.info)


def compute_the_same_bits() -> None:
    """Let this process use only deterministic CUDA kernels from now on."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


@contextmanager
def refusing_other_kernels() -> Iterator[None]:
    """Raise UserError if the block meets an operation without a deterministic kernel, where only such are allowed."""
    try:
        yield
    except RuntimeError as error:
        operation, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise UserError(
            f"resources.deterministic: {operation} has no deterministic kernel on this device; set it to false"
        ) from None


def compile_calls(network: nn.Module, device: torch.device) -> None:
    """Compile `network` by torch.compile, in place: names of parameters and buffers stay.

    Raises UserError if the CPU's code cannot be compiled because there is no C++ compiler.
    """
    if device.type == "cuda":
        network.compile(mode="reduce-overhead")  # CUDA graphs
        return
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UserError(
            f"resources.compile needs a C++ compiler, and {compiler} is not on the path: install it, name another "
            "one in CXX, or leave the setting out"
        )
    network.compile()
