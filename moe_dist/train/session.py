"""One stage of a training on one rank: its engine, its stream, its schedule, and their state as one dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_dist.data.batch import Batch
from moe_dist.engine.choose import make_engine
from moe_dist.engine.engine import Engine
from moe_dist.engine.optimisers import RateFactor
from moe_dist.methods.phases import Progress, Refresh, Stage
from moe_dist.train.sample_view import SampleView
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


class EarlyStop:
    """Counts the epochs since the validation loss was lowest; after `patience` of them the stage is over."""

    def __init__(self, patience: int | None) -> None:
        self._patience = patience
        self._lowest: float | None = None
        self._epochs = 0

    def epoch_done(self, validation_loss: float | None) -> bool:
        """Whether the stage is over, after an epoch with this loss."""
        if self._patience is None:
            return False
        assert validation_loss is not None  # a run without validation is refused
        lower = self._lowest is None or validation_loss < self._lowest
        self._lowest, self._epochs = (validation_loss, 0) if lower else (self._lowest, self._epochs + 1)
        return self._epochs >= self._patience

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; plain JSON values."""
        return {"lowest": self._lowest, "epochs": self._epochs}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._lowest, self._epochs = state["lowest"], state["epochs"]


class Session:
    """One stage on one rank: what its loop works with, and how far it has come.

    step: of the stage, from 0: how many are done. over: why the stage has ended, "" while it has not.
    """

    def __init__(self, training: Training, stage: Stage, worker: Worker) -> None:
        job = training.task.job
        self.method, self.stage, self.device = training.method, stage, worker.device
        self.epochs, self.steps = training.length(stage)
        self.engine: Engine = make_engine(
            training.network,
            stage.optimisers,
            parallel=job.parallel,
            clip_norm=stage.clip_norm,
            device=worker.device,
            bf16=training.precision == "bf16",
            world=worker.world,
            deepspeed=training.deepspeed,
        )
        self.stream = training.stream(stage, worker)
        self.validation = training.validation(stage, worker, beside=self.stream)
        self.gradients = GradientShares(worker.rank, worker.world)
        self.accumulate = job.parallel.accumulate(worker.world)
        self.log_every = LOG_EVERY_STEPS[worker.device.type]
        self.step, self.over = 0, ""
        self.by_step = stage.rate_by == "step" or stage.steps is not None
        self._rate = RateFactor(stage.schedule, self.steps if self.by_step else self.epochs)
        self._early = EarlyStop(stage.patience_epochs)
        self._every = job.checkpoint
        self._samples = SampleView(training, stage, worker)
        self._arrays: dict[str, np.ndarray] = {}
        self._refreshed_at = -1
        self.refreshed: dict[str, float] = {}

    @property
    def epoch(self) -> int:
        """The number of the epoch that the next step belongs to."""
        return self.stream.position.epoch

    def progress(self, step: int) -> Progress:
        """Where the training stands before its `step`-th step, which is the next of the stage."""
        return Progress(self.stage.name, self.epoch, self.epochs, step, self.step, self.steps)

    def prepare(self) -> None:
        """What the stage does before its first step. Left out where it goes on from a checkpoint."""
        if self.stage.prepare is not None:
            with self._evaluating() as network:
                self.stage.prepare(network, self._samples)

    def batches(self, step: int) -> Iterator[Batch]:
        """The batches up to the end of the epoch or the stage, each with what the last refresh left of its samples.

        step: how many steps the whole training has done when the first of them is asked for.
        """
        epoch, first = self.epoch, self.step
        while self.epoch == epoch and not self.over:
            self._refresh_if_due(step + self.step - first)
            if self.over:
                return
            yield from self.stream.epoch(self._arrays, self.stage.companions, self._steps_ahead())
        refresh = self.stage.refresh
        if self.over and refresh is not None and refresh.last and self.step != self._refreshed_at:
            self._refresh(refresh, step + self.step - first)

    def _steps_ahead(self) -> int:
        """How many steps there are up to the next refresh, or the stage's end."""
        left = self.steps - self.step
        return (
            left
            if self.stage.refresh is None
            else min(left, -self.step % self.stage.refresh.every_steps or (self.stage.refresh.every_steps))
        )

    def take_refreshed(self) -> dict[str, float]:
        """What the last refresh told for the log, once."""
        told, self.refreshed = self.refreshed, {}
        return told

    def _refresh_if_due(self, step: int) -> None:
        refresh = self.stage.refresh
        if refresh is not None and self.step % refresh.every_steps == 0 and self.step != self._refreshed_at:
            self._refresh(refresh, step)

    def _refresh(self, refresh: Refresh, step: int) -> None:
        with self._evaluating() as network:
            left = refresh.run(network, self._samples, self._arrays, self.progress(step + 1))
        self._arrays, self._refreshed_at = dict(left.arrays), self.step
        self.refreshed = dict(left.values)
        if left.done and not self.over:
            self.over = left.reason or "the refresh ended it"

    @contextmanager
    def _evaluating(self) -> Iterator[nn.Module]:
        """The network in eval mode without gradients; afterwards it trains again as the stage has it."""
        self.engine.network.eval()
        with torch.no_grad(), self.engine.autocast():
            yield self.engine.network
        self.method.set_training(self.engine.network, self.stage.name)

    def begin_epoch(self) -> None:
        """Set the epoch's rates and the network's mode."""
        self.engine.scale_rates(self._rate.factor)
        self.method.set_training(self.engine.network, self.stage.name)

    @property
    def rate_factor(self) -> float:
        """What every learning rate is multiplied by now."""
        return self._rate.factor

    def advance(self) -> None:
        """Count one finished step."""
        self.stream.advance()
        self.step += 1
        if self.step == self.steps:
            self.over = "its length"
        if self.by_step:
            self._rate.advance(None)
            self.engine.scale_rates(self._rate.factor)

    def epoch_done(self, validation_loss: float | None) -> None:
        """Let schedule and early stop look at an epoch that has ended."""
        if not self.by_step:
            self._rate.advance(validation_loss)
        if self._early.epoch_done(validation_loss) and not self.over:
            self.over = f"{self.stage.patience_epochs} epochs without a lower validation loss"

    def save_due(self, step: int) -> bool:
        """Whether a checkpoint inside an epoch is due; at an epoch's end the validation comes first."""
        inside = self.stream.position.steps > 0 and not self.over
        return bool(self._every.every_steps) and inside and step % self._every.every_steps == 0

    def epoch_save_due(self, epoch: int) -> bool:
        """Whether a checkpoint is due after `epoch`; always after a stage's last one."""
        return (epoch + 1) % self._every.every_epochs == 0 or bool(self.over)

    def gradient_norm(self) -> dict[str, float]:
        """The norm of the last step's gradient before it was clipped, for the log; nothing where none is clipped."""
        norm = self.engine.gradient_norm
        return {} if norm is None else {"gradient_norm": float(norm)}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside tensors, as JSON values. Collective."""
        return {
            "stage": self.stage.name,
            "stage_step": self.step,
            "over": self.over,
            "refreshed_at": self._refreshed_at,
            "stream": self.stream.state(),
            "rate": self._rate.state(),
            "early_stop": self._early.state(),
            "gradients": self.gradients.state(),
        }

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What the last refresh left, for a checkpoint."""
        return self._arrays

    def load(self, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Go on from a checkpoint's state and arrays; the engine has loaded its own part."""
        self.step, self.over, self._refreshed_at = state["stage_step"], state["over"], state["refreshed_at"]
        self._arrays = arrays
        self.stream.load(state["stream"])
        self._rate.load(state["rate"])
        self._early.load(state["early_stop"])
        self.gradients.load(state["gradients"], self.device)
