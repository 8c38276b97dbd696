"""A training by Ray Train, whose handling of Ctrl-C and of failures is changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ray.train.torch
from ray.train.torch import TorchConfig
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from moe_dist.disk import raising_disk_errors
from moe_dist.launch.launcher import use_threads
from moe_dist.launch.ray_environment import PROMPT
from moe_dist.launch.ray_failures import FailurePolicy, FaultNotes, sentence
from moe_dist.launch.ray_worker import RayWorker
from moe_dist.train.loop import train
from moe_dist.train.task import TrainingTask
from moe_dist.train.worker import TRAINING_FILES


def fit(task: TrainingTask, worker: Callable[[dict[str, Any]], None]) -> None:
    """Run `worker` with the packed task on all of the job's workers, by Ray Train, until it has returned on each.

    Raises a worker's UserError at once, and TrainingFailedError after too many other failures.
    """
    job = task.job
    gpus = job.resources.gpus_per_worker
    per_worker = {"CPU": job.resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    environment = PROMPT | ({} if gpus else {"DS_ACCELERATOR": "cpu"})
    trainer = Trainer(
        worker,
        train_loop_config=task.pack(),
        torch_config=TorchConfig(
            backend="nccl" if gpus else "gloo", timeout_s=math.ceil(job.resources.hung_after_seconds)
        ),
        scaling_config=ScalingConfig(
            num_workers=job.workers, use_gpu=gpus > 0, resources_per_worker=per_worker, placement_strategy="SPREAD"
        ),
        run_config=RunConfig(
            name=task.checkpoints.name,
            storage_path=str(task.checkpoints.parent),
            failure_config=FailureConfig(max_failures=job.checkpoint.max_failures),
            checkpoint_config=CheckpointConfig(  # Ray also keeps the newest one
                num_to_keep=job.checkpoint.keep, checkpoint_score_attribute="checkpoint_score"
            ),
            callbacks=[FaultNotes(task.folder, job.name, task.model)],  # type: ignore[list-item]  # of the controller
            worker_runtime_env={"env_vars": environment},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    with raising_disk_errors(task.folder, TRAINING_FILES):  # of Ray's own files
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise sentence(error) or error from getattr(error, "controller_failure", None)


def train_worker(packed: dict[str, Any]) -> None:
    """Train one rank of a packed task, in a worker of Ray Train."""
    task = TrainingTask.unpack(packed)
    context = ray.train.get_context()
    use_threads(task.job.resources.cpus_per_worker, sharing=context.get_local_world_size())
    with raising_disk_errors(task.folder, TRAINING_FILES):
        train(RayWorker(task.checkpoints, ray.train.torch.get_device()), task)


class Trainer(TorchTrainer):
    """Ray Train's trainer, without a handler of Ctrl-C and without retries after a UserError."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """Do nothing: Ray's handler would exit with code 1 without running any `finally`."""

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        arguments["failure_policy"] = FailurePolicy(arguments["failure_policy"].failure_config)
        return super()._initialize_and_run_controller(**arguments)
