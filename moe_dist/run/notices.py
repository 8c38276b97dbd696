"""What the user should know of a job's settings together, and on this machine's processor: they work, others better.

On a cluster the workers may have other processors than the driver, so every sentence says what it is true of.
"""

from __future__ import annotations

from collections.abc import Iterator

from moe_dist.job import Job
from moe_dist.processor import multiplies_bf16


def notices(job: Job) -> list[str]:
    """A sentence each; none of a processor that is not known (processor.py)."""
    of_data = [sentence for config in job.models.values() for sentence in config.notices_of(job.data)]
    if job.tune is not None and "method" not in job.tune.of:
        return of_data  # a search of experts: their trials are in fp32, and nothing is trained after them
    return [*of_data, *_emulated_bf16(job), *_slow_methods(job)]


def _emulated_bf16(job: Job) -> Iterator[str]:
    if job.resources.precision == "bf16" and _trains_on_cpu(job) and multiplies_bf16() is False:
        yield (
            "resources.precision = bf16: this machine's processor has no AVX512-BF16 or AMX to use and only emulates "
            "bf16, which made a step of ICL take 10 times as long as in fp32 with AVX2, and twice as long with "
            "AVX-512; where workers have such processors, set it to auto"
        )


def _trains_on_cpu(job: Job) -> bool:
    """A search's trials take the share of a GPU that tasks take, any other training the workers'."""
    resources = job.resources
    return (resources.gpus_per_task if job.kind == "tune" else resources.gpus_per_worker) == 0


def _slow_methods(job: Job) -> Iterator[str]:
    if not job.resources.gpus_per_task:
        for name, config in job.models.items():
            yield from config.slow_here("method" if job.method is not None else f"methods.{name}")
