"""Notices about settings of a job that work, but worse than others: for its data, or on this machine's processor.

On a cluster the workers may have other processors than the driver, so each sentence says which machine it is about.
"""

from __future__ import annotations

from collections.abc import Iterator

from moe_dist.job import Job
from moe_dist.processor import multiplies_bf16


def notices(job: Job) -> list[str]:
    """The notices, a sentence each; none about a processor that is not known (processor.py)."""
    about_data = [sentence for config in job.models.values() for sentence in config.notices_of(job.data)]
    if job.tune is not None and "method" not in job.tune.of:
        return about_data  # a search for experts only: its trials are in fp32, and no training follows
    return [*about_data, *_emulated_bf16(job), *_slow_methods(job)]


def _emulated_bf16(job: Job) -> Iterator[str]:
    if job.resources.precision == "bf16" and _trains_on_cpu(job) and multiplies_bf16() is False:
        yield (
            "resources.precision = bf16: this machine's processor has no AVX512-BF16 or AMX to use and only emulates "
            "bf16, which made a step of ICL take 10 times as long as in fp32 with AVX2, and twice as long with "
            "AVX-512; where workers have such processors, set it to auto"
        )


def _trains_on_cpu(job: Job) -> bool:
    """Whether the job trains on CPUs. The trials of a search have the GPUs of a task, a training those of workers."""
    resources = job.resources
    return (resources.gpus_per_task if job.kind == "tune" else resources.gpus_per_worker) == 0


def _slow_methods(job: Job) -> Iterator[str]:
    if not job.resources.gpus_per_task:
        for name, config in job.models.items():
            yield from config.slow_here("method" if job.method is not None else f"methods.{name}")
