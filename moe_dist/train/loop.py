"""The training loop. It uses methods through methods/base.py, and the launcher's process through train/worker.py.

for each stage:  load its checkpoint, or prepare it
    for each epoch:  for each batch: step, log, save;  then validate, advance the schedule, log, save
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_dist.data.bad_samples import require_readable
from moe_dist.data.batch import Batch
from moe_dist.data.stream.stream import Stream
from moe_dist.engine.checkpoint import load_arrays, load_checkpoint, read_state, save_checkpoint, seed_random
from moe_dist.errors import UserError
from moe_dist.methods.base import LOAD, Method
from moe_dist.methods.phases import Losses, Progress
from moe_dist.record.provenance import Made
from moe_dist.record.restarts import note_attempt
from moe_dist.train.checkpoints import checkpoint_score
from moe_dist.train.ends import naming_failures
from moe_dist.train.log import Log, TrainingLog
from moe_dist.train.pace import Pace
from moe_dist.train.session import Session
from moe_dist.train.task import Training, TrainingTask, open_training, refusing_other_kernels
from moe_dist.train.worker import Worker, sum_into_all, sum_over_ranks

BEGINNING: dict[str, Any] = {"stage": "", "step": 0, "seconds": 0.0, "made": []}
"""The state of a training without a checkpoint."""


def train(worker: Worker, task: TrainingTask) -> None:
    """Train all stages of a task, from the newest undamaged checkpoint if there is one, up to a final checkpoint."""
    training = open_training(task, worker)
    restored = worker.restore()
    state = read_state(restored) if restored else BEGINNING
    log = worker.metered(TrainingLog(task.folder, worker.rank, state["step"]), task.job.name, task.model)
    if worker.rank == 0:
        note_attempt(task.folder, {"from_step": state["step"], "workers": worker.ranks, "start": task.start})
    with refusing_other_kernels():
        train_stages(worker, training, log, restored)


def train_stages(worker: Worker, training: Training, log: Log, restored: Path | None) -> None:
    """Train the stages of an opened training, from the checkpoint `restored` if there is one."""
    seed_random(training.task.job.seed.to_bytes(8, "little"), worker.rank)
    state = read_state(restored) if restored else BEGINNING
    names = [stage.name for stage in training.stages]
    first = names.index(state["stage"]) if restored else 0
    loop = Loop(worker, training, log, state)
    with naming_failures(worker.rank, worker.ranks, lambda: loop.step):
        for stage in training.stages[first:]:
            session = Session(training, stage, worker)
            if restored and stage.name == state["stage"]:
                kept = load_checkpoint(restored, session.engine, rank=worker.rank, ranks=worker.ranks)
                session.load(kept, load_arrays(restored))
            else:
                session.prepare()
                if training.task.origin is not None and stage is training.stages[0]:
                    training.task.origin.take_over(training.network, training.method)
            loop.train_stage(session)
            session.engine.close()
    loop.log.close()


class Loop:
    """A training in progress: the number of its steps so far, what made them in how many seconds, and its log."""

    def __init__(self, worker: Worker, training: Training, log: Log, state: Mapping[str, Any]) -> None:
        self.worker, self.log, self._folder = worker, log, training.task.folder
        self.step: int = state["step"]
        self._total_steps = sum(training.length(stage)[1] for stage in training.stages)
        self._every = training.task.job.checkpoint
        self._stages = [stage.name for stage in training.stages]
        self._made = Made(state["made"], self.step, worker.ranks, training.precision, training.task.start)

    def train_stage(self, session: Session) -> None:
        """Train the remaining epochs of a stage."""
        while not session.over:
            epoch = session.stream.position.epoch
            losses = self._train_epoch(session, epoch)
            values = checked(losses, self.worker.ranks, self.step, session.stage.name) if losses else {}
            scores = validate(session, self.worker.ranks)
            if "loss" in scores:
                require_finite("val/loss", scores["loss"], self.step, session.stage.name)
            values |= {name if name.startswith(LOAD) else f"val/{name}": value for name, value in scores.items()}
            if self._every.test_every_epochs and ((epoch + 1) % self._every.test_every_epochs == 0 or session.over):
                tested = scores_of(session, session.test, self.worker.ranks)
                values |= {f"test/{name}": value for name, value in tested.items() if not name.startswith(LOAD)}
            values |= {"rate_factor": session.rate.factor} | session.gradients.take()
            session.epoch_done(scores.get("loss"))
            steps_by = {} if session.captured is None else {"steps_by": session.captured.how}
            self._log("epoch", session, epoch, values, **steps_by)
            if (epoch + 1) % self._every.every_epochs == 0 or session.over:
                self._save(session, scores.get(session.method.chosen_by))

    def _train_epoch(self, session: Session, epoch: int) -> Losses | None:
        """Train the rest of an epoch. Returns the losses of its last step, or None without a step."""
        images, losses = 0, None
        session.engine.optimiser.scale_rates(session.rate.factor)
        session.method.set_training(session.engine.network, session.stage.name)
        started, pace = time.perf_counter(), Pace()
        for batch in pace.timed(session.batches(self.step)):
            self._log_refresh(session, epoch)
            self.step += 1
            losses = train_step(session.method, session, batch, session.progress(self.step))
            session.advance()
            images += session.stage.batch_size
            if self.step % session.log_every == 0:
                rate = images / (time.perf_counter() - started)
                values = checked(losses, self.worker.ranks, self.step, session.stage.name)
                if session.engine.gradient_norm is not None:
                    values["gradient_norm"] = float(session.engine.gradient_norm)
                self._log("step", session, epoch, values, images_per_second=rate, **pace.take())
            if session.stream.position.steps == 0 or session.over:
                continue  # at an epoch's end, validation comes before the checkpoint
            leaving = self.worker.leaving() if self.step % session.log_every == 0 else None
            if leaving or (self._every.every_steps and self.step % self._every.every_steps == 0):
                checked(losses, self.worker.ranks, self.step, session.stage.name)
                self._save(session, None)
            if leaving:
                raise leaving
        self._log_refresh(session, epoch)
        return losses

    def _log_refresh(self, session: Session, epoch: int) -> None:
        """Log the values of a refresh once."""
        if session.refreshed:
            self._log("refresh", session, epoch, session.refreshed)
            session.refreshed = {}

    def _log(self, kind: str, session: Session, epoch: int, values: dict[str, float], **facts: Any) -> None:
        self.log.write(kind, session.stage.name, epoch, self.step, values, **facts, of_steps=self._total_steps)

    def _save(self, session: Session, score: float | None) -> None:
        """Save a checkpoint, with its validation score and the code and machines that made it; note what it cost."""
        started = time.perf_counter()
        parameters = dict(session.engine.network.named_parameters())
        finite = torch.stack([torch.isfinite(parameter).all() for parameter in parameters.values()]).tolist()
        if not all(finite):  # a finite loss can still have had an infinite update
            require_finite(list(parameters)[finite.index(False)], math.nan, self.step, session.stage.name)
        number = self._stages.index(session.stage.name)
        made = self._made.up_to(self.step)
        seconds = sum(stretch["seconds"] for stretch in made)
        state: dict[str, Any] = {"step": self.step, "seconds": seconds, "score": score, "made": made} | session.state()
        done = bool(session.over) and number + 1 == len(self._stages)
        with self.worker.saving(
            {
                "step": self.step,
                "checkpoint_score": checkpoint_score(number, score),
                "done": done,
                "of_steps": self._total_steps,
            }
        ) as folder:
            save_checkpoint(
                folder,
                session.engine,
                rank=self.worker.rank,
                ranks=self.worker.ranks,
                state=state,
                arrays=session.arrays,
            )
        if self.worker.rank == 0:
            note_attempt(self._folder, {"saved": self.step, "seconds": time.perf_counter() - started})


def train_step(method: Method, session: Session, batch: Batch, progress: Progress) -> Losses:
    """Take one optimiser step on this rank's share of a global batch, and return the losses, detached."""
    terms: dict[str, Tensor] = {}
    logged: dict[str, Tensor] = {}
    engine, captured = session.engine, session.captured
    loss_of = session.stage.loss or method.loss
    phase = method.loss_phase(progress) if captured is not None and session.stage.loss is None else None

    def passes(part: Batch) -> dict[str, Tensor]:
        """Forward and backward pass of a micro-batch: its losses."""
        with engine.autocast(together=phase is not None):
            losses = loss_of(engine.network, part, progress)
        engine.backward(torch.stack(list(losses.values())).sum())
        return losses

    parts = batch.micro_batches(session.accumulate)
    for part in parts:
        losses = passes(part) if captured is None else captured(phase, part, passes)
        if part is parts[-1]:  # gradients of earlier parts are incomplete, and not averaged over ranks
            session.gradients.add(engine.gradient_sizes(method.compared_parameters(engine.network)))
        engine.step()
        for name, value in losses.items():
            terms[name] = terms.get(name, torch.zeros_like(value)) + value.detach()
        for name, value in getattr(losses, "logged", {}).items():
            logged[name] = logged.get(name, torch.zeros_like(value)) + value.detach()
    return Losses(terms, logged)


def checked(losses: Losses, ranks: int, step: int, stage: str) -> dict[str, float]:
    """The loss, its terms and the logged values of a step, averaged over ranks. Collective.

    Raises UserError if a term is not finite.
    """
    values = [*losses.values(), *losses.logged.values()]
    averaged = (sum_over_ranks(torch.stack([value.float() for value in values]), ranks) / ranks).tolist()
    terms, logged = averaged[: len(losses)], averaged[len(losses) :]
    for name, value in zip(losses, terms):
        require_finite(name, value, step, stage)
    told = {"loss": sum(terms)} | {f"loss/{name}": value for name, value in zip(losses, terms)}
    return told | dict(zip(losses.logged, logged))


def require_finite(term: str, value: float, step: int, stage: str) -> None:
    """Raise UserError if `value` is infinite or NaN: the training ends before such weights are saved."""
    if not math.isfinite(value):
        raise UserError(
            f"the loss diverged: term `{term}` is {value} at step {step} of stage {stage}; lower "
            "the learning rate or set clip_norm, and train anew; steps before the training are kept by --resume"
        )


def validate(session: Session, ranks: int) -> dict[str, float]:
    """The method's scores on the validation split, by name; empty if the stage is not validated. Collective."""
    return scores_of(session, session.validation, ranks)


@torch.no_grad()
def scores_of(session: Session, stream: Stream | None, ranks: int) -> dict[str, float]:
    """The method's scores on the split of `stream`, by name; empty without one. Collective."""
    if stream is None:
        return {}
    measure = session.stage.measure or session.method.measure
    session.engine.network.eval()
    count = stream.samples_count
    measured: dict[str, np.ndarray] = {}
    labels, read = np.zeros(count, np.int64), np.zeros(count, bool)
    for batch in stream.epoch():
        with session.engine.autocast():
            outputs = measure(session.engine.network, batch)
        valid = (batch.weight > 0).cpu().numpy()
        rows = batch.rows.cpu().numpy()[valid]
        labels[rows], read[rows] = batch.labels.cpu().numpy()[valid], True
        for name, output in outputs.items():
            values = output.float().cpu().numpy() if output.is_floating_point() else output.cpu().numpy()
            measured.setdefault(name, np.zeros((count, *values.shape[1:]), values.dtype))[rows] = values[valid]
    everything = sum_into_all({"labels": labels, "read": read.astype(np.int64), **measured}, ranks, session.device)
    readable = everything.pop("read") > 0
    require_readable(int(readable.sum()), "test" if stream is session.test else "validation")
    whole = {name: values[readable] for name, values in everything.items()}
    return session.method.score(whole, whole.pop("labels"))
