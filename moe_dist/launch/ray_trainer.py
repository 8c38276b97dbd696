"""A training by Ray Train, whose handling of Ctrl-C and of failures is changed."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import ray.train.torch
from ray.train.torch import TorchConfig
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from moe_dist.disk import raising_disk_errors
from moe_dist.job import Job
from moe_dist.launch.heard import Heard
from moe_dist.launch.launcher import use_threads
from moe_dist.launch.ray_elastic import ElasticPolicy
from moe_dist.launch.ray_environment import PROMPT
from moe_dist.launch.ray_failures import FailurePolicy, FaultNotes, sentence
from moe_dist.launch.ray_worker import RayStoreWorker, RayWorker
from moe_dist.train.loop import train
from moe_dist.train.store_worker import open_worker
from moe_dist.train.task import TrainingTask
from moe_dist.train.worker import TRAINING_FILES


def fit(task: TrainingTask, worker: Callable[[dict[str, Any]], None]) -> None:
    """Run `worker` with the packed task on all of the job's workers, by Ray Train, until it has returned on each.

    Raises a worker's UserError at once, and TrainingFailedError after too many other failures.
    """
    with raising_disk_errors(task.folder, TRAINING_FILES), _storage(task) as storage:  # of Ray's own files
        try:
            _trainer(task, worker, storage).fit()
        except TrainingFailedError as error:
            raise sentence(error) or error from getattr(error, "controller_failure", None)


@contextlib.contextmanager
def _storage(task: TrainingTask) -> Iterator[str]:
    """The folder that Ray Train writes to: the training's, where it merges checkpoints.

    A run at a URL saves its own (StoreWorker); Ray Train is then given a folder that goes with the block.
    """
    if task.url is None:
        yield str(task.checkpoints.parent)
        return
    with tempfile.TemporaryDirectory(prefix="moe-dist-train-") as folder:
        yield folder


def placement_strategy(job: Job) -> str:
    """How Ray places the workers on nodes.

    Ray Train numbers those of a node one after another, and consecutive ranks are an expert-parallel group. A group
    exchanges images at every layer of experts, so workers are packed: groups are inside nodes if those have room, and
    only gradients go between nodes. Without groups they are spread over the nodes, whose memory and disks they use.
    """
    return "PACK" if job.parallel.expert > 1 else "SPREAD"


def _trainer(task: TrainingTask, worker: Callable[[dict[str, Any]], None], storage: str) -> Trainer:
    job = task.job
    gpus = job.resources.gpus_per_worker
    per_worker = {"CPU": job.resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    environment = PROMPT | ({} if gpus else {"DS_ACCELERATOR": "cpu"})
    return Trainer(
        worker,
        train_loop_config=task.pack(),
        torch_config=TorchConfig(
            backend="nccl" if gpus else "gloo", timeout_s=math.ceil(job.resources.hung_after_seconds)
        ),
        scaling_config=ScalingConfig(
            num_workers=(task.worker_counts[0], job.workers) if task.worker_counts else job.workers,
            use_gpu=gpus > 0,
            resources_per_worker=per_worker,
            placement_strategy=placement_strategy(job),
        ),
        run_config=RunConfig(
            name=task.checkpoints.name,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=job.checkpoint.max_failures),
            checkpoint_config=CheckpointConfig(  # Ray also keeps the newest one
                num_to_keep=job.checkpoint.keep, checkpoint_score_attribute="checkpoint_score"
            ),
            callbacks=[FaultNotes(task.folder, Heard.of(task), job.name, task.model)],  # type: ignore[list-item]  # of the controller
            worker_runtime_env={"env_vars": environment},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def train_worker(packed: dict[str, Any]) -> None:
    """Train one rank of a packed task, in a worker of Ray Train."""
    task = TrainingTask.unpack(packed)
    context = ray.train.get_context()
    use_threads(task.job.resources.cpus_per_worker, sharing=context.get_local_world_size())
    device = ray.train.torch.get_device()
    with raising_disk_errors(task.folder, TRAINING_FILES):
        if task.url is None:
            train(RayWorker(task.checkpoints, device), task)
            return
        with open_worker(task, context.get_world_rank(), context.get_world_size(), device, deepspeed=True) as store:
            train(RayStoreWorker(store, device), task)


class Trainer(TorchTrainer):
    """Ray Train's trainer, with our policies of failures and sizes, and without a handler of Ctrl-C."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """Do nothing: Ray's handler would exit with code 1 without running any `finally`."""

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        arguments["failure_policy"] = FailurePolicy(arguments["failure_policy"].failure_config)
        if counts := (self.train_loop_config or {}).get("worker_counts"):
            arguments["scaling_policy"] = ElasticPolicy(arguments["scaling_policy"].scaling_config, counts)
        return super()._initialize_and_run_controller(**arguments)
