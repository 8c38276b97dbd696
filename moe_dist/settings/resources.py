"""What a job's workers ask of the cluster, and how they share a training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
)

from moe_dist.settings.schema import Count, Part, Strict


def _zero_stage(stage: int) -> int:
    if stage == 3:
        raise ValueError("ZeRO 3 shards the very parameters that expert parallelism places; choose 0, 1 or 2")
    if not 0 <= stage <= 2:
        raise ValueError("choose 0, 1 or 2")
    return stage


class ParallelConfig(Strict):
    """How ranks share the work of one training.

    A part of none by itself; where a network looks at its share of a batch, the shares are counted (fingerprints.py).
    """

    expert: Annotated[Count, Part.NONE] = 1
    """Expert-parallel size: experts are divided over so many ranks; it divides `workers`."""
    zero: Annotated[int, AfterValidator(_zero_stage), Part.NONE] = 0
    """DeepSpeed ZeRO stage, 0 to 2."""
    micro_batches: Annotated[Count, Part.NONE] = 1
    """Parts a global batch is cut into, over all workers; each worker adds up the gradients of its own. With 2, one
    worker and two compute the very same parts: without dropout and batch normalisation, their curves are the same."""

    def accumulate(self, workers: int) -> int:
        """Micro-batches of one worker in a step."""
        return max(1, self.micro_batches // workers)


class ResourceConfig(Strict):
    """What one worker asks of the cluster."""

    cpus_per_worker: Annotated[float, Field(gt=0), Part.NONE] = 1
    gpus_per_worker: Annotated[float, Field(ge=0), Part.NONE] = 0
    """0 trains on the CPU."""
    cpus_per_task: Annotated[float, Field(gt=0), Part.NONE] = 1
    """Of tasks beside the joint training (an expert alone, features, evaluation)."""
    gpus_per_task: Annotated[float, Field(ge=0), Part.NONE] = 0
    """A fraction lets several tasks share a GPU."""
    precision: Annotated[Literal["auto", "fp32", "bf16"], Part.NONE] = "auto"
    """auto: bf16 autocast on a GPU, fp32 on a CPU. Counted as decided."""
    compile: bool = False
    """The training's passes through torch.compile, on a GPU captured as CUDA graphs, which pays off where launching
    kernels takes longer than they run, as with small images. Equal to eager up to rounding."""
