"""Which numbers of workers may train an elastic job, one with `min_workers`, so that each of them gives its results."""

from __future__ import annotations

from collections.abc import Sequence

from moe_dist.errors import UserError
from moe_dist.job import Job
from moe_dist.methods.base import Method
from moe_dist.methods.phases import Stage
from moe_dist.record.fingerprints import layers_that_notice_shares


def worker_counts(job: Job, method: Method) -> tuple[int, ...]:
    """The numbers of workers that may train a method, ascending, the last of them `workers`; () if no fewer may.

    A number must divide the batches, make whole groups of `parallel.expert`, and divide the micro-batches among its
    workers. Raises UserError where the job asks for fewer workers, and none would give the same results.
    """
    if job.fewest_workers == job.workers:
        return ()
    divided = [stage for stage in method.stages() if not stage.replicated]
    _require_the_same_parts(job, method, divided)
    possible = [count for count in range(1, job.workers + 1) if _divides(count, job, divided)]
    chosen = tuple(count for count in possible if count >= job.fewest_workers)
    if len(chosen) < 2:
        others = [count for count in possible if count < job.fewest_workers]
        instead = f"set it to {others[-1]}, or leave it out" if others else "leave it out"
        raise UserError(
            f"min_workers = {job.min_workers}: no number of workers from there up to {job.workers} divides the batches "
            f"of {method.config.name} ({', '.join(f'{stage.name}: {stage.batch_size}' for stage in divided)}), "
            f"parallel.expert = {job.parallel.expert} and parallel.micro_batches = {job.parallel.micro_batches}; "
            f"{instead}"
        )
    return chosen


def _require_the_same_parts(job: Job, method: Method, divided: Sequence[Stage]) -> None:
    """Raise UserError if the parts of a batch change with the number of workers, and the method notices it."""
    if any(stage.whole_batch for stage in divided):
        raise UserError(
            f"min_workers = {job.min_workers}: a loss of {method.config.name} is of the whole batch, of which each "
            "worker computes a share that would change with their number; leave it out"
        )
    if job.workers <= job.parallel.micro_batches:
        return
    if method.looks_at_shares or any(layers_that_notice_shares(method, stage, job.seed) for stage in divided):
        raise UserError(
            f"min_workers = {job.min_workers}: {method.config.name} notices how a batch is divided (by batch "
            "normalisation, dropout or a worker's load), and fewer workers would divide it into fewer parts; set "
            f"parallel.micro_batches to {job.workers}, which keeps the parts, or leave min_workers out"
        )


def _divides(count: int, job: Job, divided: Sequence[Stage]) -> bool:
    """Whether `count` workers divide all batches evenly, into as many micro-batches as the job says."""
    parts = job.parallel.micro_batches
    if count % job.parallel.expert or (parts > count and parts % count):
        return False
    return all(stage.batch_size % count == 0 for stage in divided)
