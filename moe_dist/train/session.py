"""A stage of a training on one rank: its engine, streams and schedule, and their state for a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_dist.data.batch import Batch, Images, TrainingSet
from moe_dist.data.stream.stream import Stream
from moe_dist.engine.captured import CapturedPasses, CudaRecorder
from moe_dist.engine.choose import make_engine
from moe_dist.engine.engine import Engine
from moe_dist.engine.optimisers import RateFactor
from moe_dist.methods.phases import Progress, Refresh, Stage
from moe_dist.train.sample_view import SampleView
from moe_dist.train.task import EVALUATION_BATCH, Training
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


class Session:
    """A stage on one rank: its engine, streams, schedule and position.

    step: the number of finished steps of the stage. over: the reason why the stage has ended, or "". arrays: those of
    the last refresh, [N, ...] by name. refreshed: the values of a refresh that are not in the log yet.
    """

    def __init__(self, training: Training, stage: Stage, worker: Worker) -> None:
        parallel = training.task.job.parallel
        if stage.replicated:
            parallel = parallel.model_copy(update={"micro_batches": 1})
        self.method, self.stage, self.device = training.method, stage, worker.device
        self.epochs, self.steps = training.length(stage)
        self.engine: Engine = make_engine(
            training.network,
            stage.optimisers,
            parallel=parallel,
            clip_norm=stage.clip_norm,
            device=worker.device,
            bf16=training.precision == "bf16",
            ranks=worker.ranks,
            deepspeed=training.deepspeed,
        )
        self.stream = _training_stream(training, stage, worker)
        self.validation = _validation_stream(training, stage, worker, beside=self.stream)
        self.test = _test_stream(training, stage, worker, beside=self.stream)
        self.gradients = GradientShares(worker.rank, worker.ranks)
        self.accumulate = parallel.accumulate(worker.ranks)
        self.captured = _captured_passes(training, self.engine, self.accumulate)
        self.log_every = LOG_EVERY_STEPS[worker.device.type]
        self.step, self.over = 0, ""
        self.by_step = stage.rate_by == "step" or stage.steps is not None
        self.rate = RateFactor(stage.schedule, self.steps if self.by_step else self.epochs)
        self._lowest_loss: float | None = None
        self._epochs_since_lowest = 0
        self._samples = SampleView(training, stage, worker)
        self.arrays: dict[str, np.ndarray] = {}
        self.refreshed: dict[str, float] = {}
        self._refreshed_at = -1

    def progress(self, step: int) -> Progress:
        """The progress at step `step` of the training, which is the stage's next step."""
        return Progress(self.stage.name, self.stream.position.epoch, self.epochs, step, self.step, self.steps)

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
        epoch, first, refresh = self.stream.position.epoch, self.step, self.stage.refresh
        while self.stream.position.epoch == epoch and not self.over:
            steps_ahead = self.steps - self.step
            if refresh is not None:
                since = self.step % refresh.every_steps
                steps_ahead = min(steps_ahead, refresh.every_steps - since)
                if since == 0 and self.step != self._refreshed_at:
                    self._refresh(refresh, self.progress(step + self.step - first + 1))
            if not self.over:
                yield from self.stream.epoch(self.arrays, self.stage.companions, steps_ahead)
        if self.over and refresh is not None and refresh.last and self.step != self._refreshed_at:
            self._refresh(refresh, self.progress(step + self.step - first + 1))

    def _refresh(self, refresh: Refresh, progress: Progress) -> None:
        with self._evaluating() as network:
            result = refresh.run(network, self._samples, self.arrays, progress)
        self.arrays, self.refreshed, self._refreshed_at = dict(result.arrays), dict(result.values), self.step
        if result.done and not self.over:
            self.over = result.reason or "the refresh ended it"

    @contextmanager
    def _evaluating(self) -> Iterator[nn.Module]:
        """Give the block the network in eval mode, without gradients, and set the stage's mode again afterwards."""
        self.engine.network.eval()
        with torch.no_grad(), self.engine.autocast():
            yield self.engine.network
        self.method.set_training(self.engine.network, self.stage.name)

    def advance(self) -> None:
        """Count one finished step, and advance a schedule that moves by steps."""
        self.stream.advance()
        self.step += 1
        if self.step == self.steps:
            self.over = "its length"
        if self.by_step:
            self.rate.advance(None)
            self.engine.optimiser.scale_rates(self.rate.factor)

    def epoch_done(self, validation_loss: float | None) -> None:
        """Count one finished epoch: advance a schedule that moves by epochs, and stop the stage early if it is time."""
        if not self.by_step:
            self.rate.advance(validation_loss)
        patience = self.stage.patience_epochs
        if patience is None:
            return
        assert validation_loss is not None  # require_trainable refuses a run without validation
        if self._lowest_loss is None or validation_loss < self._lowest_loss:
            self._lowest_loss, self._epochs_since_lowest = validation_loss, 0
        else:
            self._epochs_since_lowest += 1
        if self._epochs_since_lowest >= patience and not self.over:
            self.over = f"{patience} epochs without a lower validation loss"

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint, without tensors, as JSON values. Collective."""
        return {
            "stage": self.stage.name,
            "stage_step": self.step,
            "over": self.over,
            "refreshed_at": self._refreshed_at,
            "stream": self.stream.state(),
            "rate": self.rate.state(),
            "early_stop": {"lowest": self._lowest_loss, "epochs": self._epochs_since_lowest},
            "gradients": self.gradients.state(),
        }

    def load(self, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Load a checkpoint's state and arrays; the engine has loaded its own part."""
        self.step, self.over, self._refreshed_at = state["stage_step"], state["over"], state["refreshed_at"]
        self.arrays = arrays
        self.stream.load(state["stream"])
        self.rate.load(state["rate"])
        self._lowest_loss, self._epochs_since_lowest = state["early_stop"]["lowest"], state["early_stop"]["epochs"]
        self.gradients.load(state["gradients"], self.device)


def _captured_passes(training: Training, engine: Engine, accumulate: int) -> CapturedPasses | None:
    """What captures the steps of a stage as CUDA graphs; None where they cannot be, or the job does not want it.

    DeepSpeed reduces gradients by hooks and collectives in the backward pass, torch.compile captures graphs of its own,
    and a graph writes gradients where several parts of a batch would have to be added.
    """
    resources = training.task.job.resources
    if engine.device.type != "cuda" or not resources.graphs or resources.compile:
        return None
    if training.deepspeed or accumulate > 1:
        return None
    return CapturedPasses(list(engine.network.parameters()), CudaRecorder(engine.device))


def _training_stream(training: Training, stage: Stage, worker: Worker) -> Stream:
    """The training batches of a stage, for this rank."""
    return Stream(
        training.data.train.images,
        training.training_set(stage),
        training.data.config,
        seed=training.task.job.seed,
        global_batch=stage.batch_size,
        rank=0 if stage.replicated else worker.rank,
        ranks=1 if stage.replicated else worker.ranks,
        augment=stage.augment,
        device=worker.device,
        shard_of=training.data.train.shard_of,
        sampling=stage.sampling,
        epochs=training.length(stage)[0],
        order=stage.order,
    )


def _validation_stream(training: Training, stage: Stage, worker: Worker, beside: Stream) -> Stream | None:
    """The validation batches of a stage, for this rank, without augmentation; None if it is not validated.

    beside: the stage's training batches; both are decoded by the same loader processes.
    """
    data, samples = training.data, training.data.val_samples
    if not len(samples) or not stage.validated:
        return None
    if stage.validation_set is None:
        validation_set = TrainingSet(samples, data.val.labels[samples])
    else:
        validation_set = stage.validation_set(training.results, data.val.labels, samples)
    return _scored_stream(training, data.val.images, validation_set, worker, beside)


def _test_stream(training: Training, stage: Stage, worker: Worker, beside: Stream) -> Stream | None:
    """The batches of the test split; None where the job does not look at it, or the stage has scores of its own."""
    own = (stage.build, stage.measure, stage.validation_set)
    if not training.task.job.checkpoint.test_every_epochs or any(part is not None for part in own):
        return None
    data = training.data
    test_set = TrainingSet(data.test_samples, data.test.labels[data.test_samples])
    return _scored_stream(training, data.test.images, test_set, worker, beside)


def _scored_stream(training: Training, images: Images, of: TrainingSet, worker: Worker, beside: Stream) -> Stream:
    """The batches of a set that is scored, in its order and without augmentation, for this rank."""
    share = -(-len(of.samples) // worker.ranks)
    return Stream(
        images,
        of,
        training.data.config,
        seed=training.task.job.seed,
        global_batch=min(EVALUATION_BATCH, share) * worker.ranks,  # a small split is not padded to a whole batch
        rank=worker.rank,
        ranks=worker.ranks,
        augment=None,
        shuffle=False,
        device=worker.device,
        beside=beside,
    )
