"""One stage of a training on one rank: its engine, its stream, its schedule, and their state as one dictionary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_dist.data.stream.stream import Stream
from moe_dist.engine.choose import make_engine
from moe_dist.engine.engine import Engine
from moe_dist.engine.optimisers import RateFactor
from moe_dist.methods.base import Stage
from moe_dist.train.task import Training
from moe_dist.train.worker import Worker, sum_over_ranks


class GradientShares:
    """Sums of the experts' gradient sizes [E] over the steps of an epoch so far, as `Engine.gradient_sizes` tells them.

    A rank tells 0 for experts it does not hold, and every expert is held by equally many ranks, so shares of the
    ranks' sum are shares of the experts.
    """

    def __init__(self, rank: int, world: int) -> None:
        self._rank, self._world = rank, world
        self._sums: Tensor | None = None

    def add(self, sizes: Tensor) -> None:
        """Count one step's gradient sizes [E]; E is 0 where the method compares none."""
        if len(sizes):
            self._sums = sizes.double() if self._sums is None else self._sums + sizes

    def take(self) -> dict[str, float]:
        """Each expert's share by its name in the log, {} where there is none; a new epoch begins. Collective."""
        sums = self.state()
        self._sums = None
        total = sum(sums)
        return {f"gradient_share/expert_{expert}": value / total for expert, value in enumerate(sums) if total}

    def state(self) -> list[float]:
        """The sums over all ranks. Collective."""
        return [] if self._sums is None else sum_over_ranks(self._sums.clone(), self._world).tolist()

    def load(self, state: list[float], device: torch.device) -> None:
        """Go on from a checkpoint's state: rank 0 takes the sums over, the others start from nothing."""
        sums = torch.tensor(state, dtype=torch.float64, device=device)
        self._sums = (sums if self._rank == 0 else torch.zeros_like(sums)) if state else None


LOG_EVERY_STEPS = {"cpu": 1, "cuda": 20}
"""Reading a loss waits for the GPU, so there it is read seldom."""


@dataclass
class Session:
    """What a stage's loop works with."""

    engine: Engine
    stream: Stream
    validation: Stream | None
    rate: RateFactor
    gradients: GradientShares
    stage: Stage
    accumulate: int
    every_steps: int
    every_epochs: int
    device: torch.device

    @property
    def log_every(self) -> int:
        """Steps between two lines of the log."""
        return LOG_EVERY_STEPS[self.device.type]

    def save_due(self, step: int) -> bool:
        """Whether a checkpoint inside an epoch is due; at an epoch's end the validation comes first."""
        inside = self.stream.position.steps > 0
        return bool(self.every_steps) and inside and step % self.every_steps == 0

    def epoch_save_due(self, epoch: int) -> bool:
        """Whether a checkpoint is due after `epoch`; always after a stage's last one."""
        return (epoch + 1) % self.every_epochs == 0 or epoch + 1 == self.stage.epochs

    def gradient_norm(self) -> dict[str, float]:
        """The norm of the last step's gradient before it was clipped, for the log; nothing where none is clipped."""
        norm = self.engine.gradient_norm
        return {} if norm is None else {"gradient_norm": float(norm)}

    def state(self) -> dict[str, Any]:
        """Stream position, schedule and the epoch's gradient shares so far, as JSON values. Collective."""
        return {"stream": self.stream.state(), "rate": self.rate.state(), "gradients": self.gradients.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's state; the engine has loaded its own part."""
        self.stream.load(state["stream"])
        self.rate.load(state["rate"])
        self.gradients.load(state["gradients"], self.device)


def open_session(training: Training, stage: Stage, worker: Worker) -> Session:
    """The stage's engine, streams and schedule for this rank."""
    job = training.job
    engine = make_engine(
        training.network,
        stage.optimisers,
        parallel=job.parallel,
        clip_norm=stage.clip_norm,
        device=worker.device,
        bf16=training.precision == "bf16",
        world=worker.world,
        deepspeed=training.deepspeed,
    )
    stream = training.stream(stage, worker)
    return Session(
        engine=engine,
        stream=stream,
        validation=training.validation(stage, worker, beside=stream),
        rate=RateFactor(stage.schedule, stage.epochs),
        gradients=GradientShares(worker.rank, worker.world),
        stage=stage,
        accumulate=job.parallel.accumulate(worker.world),
        every_steps=job.checkpoint.every_steps,
        every_epochs=job.checkpoint.every_epochs,
        device=worker.device,
    )
