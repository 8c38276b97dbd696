"""A stage of a training on one rank: its engine, streams and schedule, and their state for a checkpoint."""

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
from moe_dist.methods.phases import Progress, Stage
from moe_dist.train.sample_view import SampleView
from moe_dist.train.task import Training
from moe_dist.train.worker import Worker, sum_over_ranks


class GradientShares:
    """Sums the gradient sizes [E] of experts (`Engine.gradient_sizes`) over the steps of an epoch.

    The size of an expert that a rank does not hold is 0, and each expert is held by equally many ranks. So the shares
    of the sum over ranks are the experts' shares.
    """

    def __init__(self, rank: int, ranks: int) -> None:
        self._rank, self._ranks = rank, ranks
        self._sums: Tensor | None = None

    def add(self, sizes: Tensor) -> None:
        """Add the gradient sizes [E] of one step; E is 0 if the method compares no gradients."""
        if len(sizes):
            self._sums = sizes.double() if self._sums is None else self._sums + sizes

    def take(self) -> dict[str, float]:
        """Each expert's share of the epoch, by its name in the log, and start a new epoch. Collective."""
        sums = self.state()
        self._sums = None
        total = sum(sums)
        return {f"gradient_share/expert_{expert}": value / total for expert, value in enumerate(sums) if total}

    def state(self) -> list[float]:
        """The sums over all ranks. Collective."""
        return [] if self._sums is None else sum_over_ranks(self._sums.clone(), self._ranks).tolist()

    def load(self, state: list[float], device: torch.device) -> None:
        """Load the sums of a checkpoint on rank 0, and zeros on other ranks."""
        sums = torch.tensor(state, dtype=torch.float64, device=device)
        self._sums = (sums if self._rank == 0 else torch.zeros_like(sums)) if state else None


LOG_EVERY_STEPS = {"cpu": 1, "cuda": 20}
"""Steps between two lines of the log. Reading a loss waits for the GPU, so it is read less often there."""


class EarlyStop:
    """Ends a stage after `patience` epochs without a new lowest validation loss; None never ends it."""

    def __init__(self, patience: int | None) -> None:
        self._patience = patience
        self._lowest: float | None = None
        self._epochs = 0

    def epoch_done(self, validation_loss: float | None) -> bool:
        """Count an epoch with this loss, and return whether the stage ends."""
        if self._patience is None:
            return False
        assert validation_loss is not None  # require_trainable refuses a run without validation
        lower = self._lowest is None or validation_loss < self._lowest
        self._lowest, self._epochs = (validation_loss, 0) if lower else (self._lowest, self._epochs + 1)
        return self._epochs >= self._patience

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint, as JSON values."""
        return {"lowest": self._lowest, "epochs": self._epochs}

    def load(self, state: dict[str, Any]) -> None:
        """Load a state that `state` returned."""
        self._lowest, self._epochs = state["lowest"], state["epochs"]


class Session:
    """A stage on one rank: its engine, streams, schedule and position.

    step: the number of finished steps of the stage. over: the reason why the stage has ended, or "".
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
            ranks=worker.ranks,
            deepspeed=training.deepspeed,
        )
        self.stream = training.stream(stage, worker)
        self.validation = training.validation(stage, worker, beside=self.stream)
        self.gradients = GradientShares(worker.rank, worker.ranks)
        self.accumulate = job.parallel.accumulate(worker.ranks)
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
        """The number of the next step's epoch, from 0."""
        return self.stream.position.epoch

    def progress(self, step: int) -> Progress:
        """The progress at step `step` of the training, which is the stage's next step."""
        return Progress(self.stage.name, self.epoch, self.epochs, step, self.step, self.steps)

    def prepare(self) -> None:
        """Run the stage's own preparation, if any; a stage that is loaded from a checkpoint is not prepared again."""
        if self.stage.prepare is not None:
            with self._evaluating() as network:
                self.stage.prepare(network, self._samples)

    def batches(self, step: int) -> Iterator[Batch]:
        """The remaining batches of the epoch, or of the stage if that ends first; refreshes run between them.

        A batch carries its samples' rows of the arrays that the last refresh returned. step: the number of finished
        steps of the whole training.
        """
        epoch, first = self.epoch, self.step
        while self.epoch == epoch and not self.over:
            self._refresh_if_due(step + self.step - first)
            if self.over:
                return
            yield from self.stream.epoch(self._arrays, self.stage.companions, self._steps_ahead())

    def _steps_ahead(self) -> int:
        """The number of steps up to the next refresh or the end of the stage."""
        left = self.steps - self.step
        return (
            left
            if self.stage.refresh is None
            else min(left, -self.step % self.stage.refresh.every_steps or (self.stage.refresh.every_steps))
        )

    def take_refreshed(self) -> dict[str, float]:
        """The values that the last refresh returned for the log; empty when called again."""
        told, self.refreshed = self.refreshed, {}
        return told

    def _refresh_is_due(self) -> bool:
        refresh = self.stage.refresh
        return refresh is not None and self.step % refresh.every_steps == 0 and self.step != self._refreshed_at

    def _refresh_if_due(self, step: int) -> None:
        if not self._refresh_is_due() or self.stage.refresh is None:
            return
        with self._evaluating() as network:
            left = self.stage.refresh.run(network, self._samples, self._arrays, self.progress(step + 1))
        self._arrays, self._refreshed_at = dict(left.arrays), self.step
        self.refreshed = dict(left.values)
        if left.done:
            self.over = left.reason or "the refresh ended it"

    @contextmanager
    def _evaluating(self) -> Iterator[nn.Module]:
        """Give the block the network in eval mode, without gradients, and set the stage's mode again afterwards."""
        self.engine.network.eval()
        with torch.no_grad(), self.engine.autocast():
            yield self.engine.network
        self.method.set_training(self.engine.network, self.stage.name)

    def begin_epoch(self) -> None:
        """Set the learning rates of the epoch and the mode of the network."""
        self.engine.optimiser.scale_rates(self._rate.factor)
        self.method.set_training(self.engine.network, self.stage.name)

    @property
    def rate_factor(self) -> float:
        """The factor by which every learning rate is multiplied."""
        return self._rate.factor

    def advance(self) -> None:
        """Count one finished step, and advance a schedule that moves by steps."""
        self.stream.advance()
        self.step += 1
        if self.step == self.steps:
            self.over = "its length"
        if self.by_step:
            self._rate.advance(None)
            self.engine.optimiser.scale_rates(self._rate.factor)

    def epoch_done(self, validation_loss: float | None) -> None:
        """Count one finished epoch for the schedule and for early stopping."""
        if not self.by_step:
            self._rate.advance(validation_loss)
        if self._early.epoch_done(validation_loss) and not self.over:
            self.over = f"{self.stage.patience_epochs} epochs without a lower validation loss"

    def save_due(self, step: int) -> bool:
        """Whether a checkpoint is due after step `step`, within an epoch; at its end, validation comes first."""
        inside = self.stream.position.steps > 0 and not self.over
        return bool(self._every.every_steps) and inside and step % self._every.every_steps == 0

    def epoch_save_due(self, epoch: int) -> bool:
        """Whether a checkpoint is due after the epoch `epoch`; always True after the last one of a stage."""
        return (epoch + 1) % self._every.every_epochs == 0 or bool(self.over)

    def gradient_norm(self) -> dict[str, float]:
        """The norm of the last gradient before clipping, for the log; empty if gradients are not clipped."""
        norm = self.engine.gradient_norm
        return {} if norm is None else {"gradient_norm": float(norm)}

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint, without tensors, as JSON values. Collective."""
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
        """The arrays that the last refresh returned, for a checkpoint."""
        return self._arrays

    def load(self, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Load a checkpoint's state and arrays; the engine has loaded its own part."""
        self.step, self.over, self._refreshed_at = state["stage_step"], state["over"], state["refreshed_at"]
        self._arrays = arrays
        self.stream.load(state["stream"])
        self._rate.load(state["rate"])
        self._early.load(state["early_stop"])
        self.gradients.load(state["gradients"], self.device)
