"""The training loop. It knows methods only through methods/base.py, and its whereabouts only through the worker."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from moe_dist.data.bad_samples import require_readable
from moe_dist.data.batch import Batch
from moe_dist.engine.checkpoint import load_checkpoint, read_state, save_checkpoint
from moe_dist.engine.random_state import seed_random
from moe_dist.errors import UserError
from moe_dist.methods.base import Method, Progress
from moe_dist.record.provenance import Made
from moe_dist.train.checkpoints import standing
from moe_dist.train.log import TrainingLog
from moe_dist.train.session import Session, open_session
from moe_dist.train.task import TrainingTask, open_training
from moe_dist.train.worker import Worker, mean_over_ranks, sum_over_ranks


def train(worker: Worker, task: TrainingTask) -> None:
    """Train every stage of the task's method, from the last whole checkpoint if there is one, to a last checkpoint."""
    training = open_training(task, worker)
    seed_random(task.job.seed, worker.rank)
    restored = worker.restore()
    state: dict[str, Any] = read_state(restored) if restored else {"stage": 0, "step": 0, "seconds": 0.0, "made": []}
    made = Made(state["made"], state["step"], worker.world, training.precision, task.start)
    log = TrainingLog(task.folder, worker.rank, state["step"])
    clock = time.perf_counter() - state["seconds"]
    step = state["step"]
    total_steps = training.total_steps

    for number, stage in enumerate(training.method.stages()):
        if number < state["stage"]:
            continue
        session = open_session(training, stage, worker)
        if restored and number == state["stage"]:
            session.load(load_checkpoint(restored, session.engine, rank=worker.rank, world=worker.world))

        while session.stream.position.epoch < stage.epochs:
            epoch = session.stream.position.epoch
            session.engine.scale_rates(session.rate.factor)
            training.method.set_training(session.engine.network, stage.name)
            started, images = time.perf_counter(), 0
            for batch in session.stream.epoch():
                step += 1
                terms = train_step(training.method, session, batch, Progress(stage.name, epoch, stage.epochs, step))
                session.stream.advance()
                images += stage.batch_size
                if step % session.log_every == 0:
                    values = checked(terms, worker.world, step, stage.name) | session.gradient_norm()
                    rate = images / (time.perf_counter() - started)
                    log.write("step", stage.name, epoch, step, values, images_per_second=rate, of_steps=total_steps)
                if session.save_due(step):
                    checked(terms, worker.world, step, stage.name)
                    save(worker, session, number, step, time.perf_counter() - clock, made)

            values = checked(terms, worker.world, step, stage.name)
            values |= evaluate(training.method, session, worker.world)
            if session.validation is not None:
                require_finite("val/loss", values["val/loss"], step, stage.name)
            values |= {"rate_factor": session.rate.factor} | session.gradients.take()
            session.rate.epoch_done(values.get("val/loss"))
            log.write("epoch", stage.name, epoch, step, values, of_steps=total_steps)
            if session.epoch_save_due(epoch):
                save(worker, session, number, step, time.perf_counter() - clock, made, values.get("val/top1"))
        session.engine.close()
    log.close()


def train_step(method: Method, session: Session, batch: Batch, progress: Progress) -> dict[str, Tensor]:
    """One optimiser step on this rank's share of a global batch; the loss terms, detached."""
    totals: dict[str, Tensor] = {}
    parts = batch.micro_batches(session.accumulate)
    for part in parts:
        with session.engine.autocast():
            terms = method.loss(session.engine.network, part, progress)
        loss = torch.stack(list(terms.values())).sum()
        session.engine.backward(loss)
        if part is parts[-1]:  # before, gradients are not whole, and not yet averaged over ranks
            session.gradients.add(session.engine.gradient_sizes(method.compared_parameters(session.engine.network)))
        session.engine.step()
        for name, value in terms.items():
            totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach()
    return totals


def checked(terms: dict[str, Tensor], world: int, step: int, stage: str) -> dict[str, float]:
    """The terms and their sum, averaged over ranks; a term that is not finite ends the training with its name."""
    averaged = mean_over_ranks(torch.stack([value.float() for value in terms.values()]), world).tolist()
    for name, value in zip(terms, averaged):
        require_finite(name, value, step, stage)
    return {"loss": sum(averaged)} | {f"loss/{name}": value for name, value in zip(terms, averaged)}


def require_finite(term: str, value: float, step: int, stage: str) -> None:
    """Raise UserError where a loss is no number any more; it ends the training before anything is saved."""
    if not math.isfinite(value):
        raise UserError(
            f"the loss diverged: term `{term}` is {value} at step {step} of stage {stage}; lower "
            "the learning rate or set clip_norm, and train anew; steps before the training are kept by --resume"
        )


@torch.no_grad()
def evaluate(method: Method, session: Session, world: int) -> dict[str, float]:
    """Mean negative log-likelihood and top-1 accuracy on the validation split, over all ranks; nothing without one."""
    if session.validation is None:
        return {}
    session.engine.network.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=session.device)
    for batch in session.validation.epoch():
        with session.engine.autocast():
            log_probs = method.predict(session.engine.network, batch.images).log_probs.float()
        valid = (batch.weight > 0).double()
        correct = (log_probs.argmax(1) == batch.labels).double()
        loss = nn.functional.nll_loss(log_probs, batch.labels, reduction="none").double()
        sums += torch.stack([(valid * loss).sum(), (valid * correct).sum(), valid.sum()])
    loss_sum, correct_sum, count = sum_over_ranks(sums, world).tolist()
    require_readable(count, "validation")
    return {"val/loss": loss_sum / count, "val/top1": correct_sum / count}


def save(
    worker: Worker,
    session: Session,
    stage: int,
    step: int,
    seconds: float,
    made: Made,
    validation_top1: float | None = None,
) -> None:
    """Publish all that a training needs to go on from here, what made it, and what the validation said, if it did."""
    for name, parameter in session.engine.network.named_parameters():
        if not torch.isfinite(parameter).all():  # the step's loss was finite, its update was not
            require_finite(name, math.nan, step, session.stage.name)
    state: dict[str, Any] = {"stage": stage, "step": step, "seconds": seconds, "validation_top1": validation_top1}
    state |= session.state() | {"made": made.up_to(step)}
    with worker.saving({"step": step, "standing": standing(stage, validation_top1)}) as folder:
        save_checkpoint(folder, session.engine, rank=worker.rank, world=worker.world, state=state)
