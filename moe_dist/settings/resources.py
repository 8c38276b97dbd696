"""The resources that a job's workers ask the cluster for, and how they share a training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from moe_dist.settings.schema import Count, Part, Strict


def _zero_stage(stage: int) -> int:
    if stage == 3:
        raise ValueError("ZeRO 3 shards the very parameters that expert parallelism places; choose 0, 1 or 2")
    if not 0 <= stage <= 2:
        raise ValueError("choose 0, 1 or 2")
    return stage


class ParallelConfig(Strict):
    """How ranks share the work of one training.

    No number depends on these fields by themselves. Where a network looks at its share of a batch,
    record/fingerprints.py counts the number of shares.
    """

    expert: Annotated[Count, Part.NONE] = 1
    """Expert-parallel size: the number of ranks that experts are divided over; it divides `workers`."""
    zero: Annotated[int, AfterValidator(_zero_stage), Part.NONE] = 0
    """DeepSpeed ZeRO stage, 0 to 2."""
    micro_batches: Annotated[Count, Part.NONE] = 1
    """Number of parts a global batch is cut into, over all workers; each worker adds up the gradients of its own parts.
    With 2, one worker and two compute the very same parts, so without dropout and batch normalisation their curves are
    the same."""

    def accumulate(self, workers: int) -> int:
        """Number of micro-batches that one of `workers` workers computes in a step."""
        return max(1, self.micro_batches // workers)


class ResourceConfig(Strict):
    """The resources that one worker asks the cluster for."""

    cpus_per_worker: Annotated[float, Field(gt=0), Part.NONE] = 1
    gpus_per_worker: Annotated[float, Field(ge=0), Part.NONE] = 0
    """0 trains on the CPU."""
    cpus_per_task: Annotated[float, Field(gt=0), Part.NONE] = 1
    """CPUs of each task beside the joint training (an expert alone, features, evaluation)."""
    gpus_per_task: Annotated[float, Field(ge=0), Part.NONE] = 0
    """GPUs of such a task; with a fraction, several tasks share one."""
    precision: Annotated[Literal["auto", "fp32", "bf16"], Part.NONE] = "auto"
    """auto: bf16 autocast on a GPU, fp32 on a CPU. The fingerprint counts what it comes to."""
    graphs: Annotated[bool, Part.NONE] = True
    """On a GPU, run a step's passes as CUDA graphs where the method's loss can be captured and one process trains the
    network. They launch the same kernels; docs/on_a_gpu.md says where they are not used."""
    hung_after_seconds: Annotated[float, Field(gt=0), Part.NONE] = 300
    """How long a worker waits for the others in an exchange before the training counts as hung, and is started again.
    What one of them computes alone meanwhile, as k-means on rank 0, must take less."""
    deterministic: bool = False
    """On a GPU, use only kernels that give the same bits in every run. Slower; an operation without such a kernel ends
    the run. On a CPU, runs are the same bits without it."""
    compile: bool = False
    """Run the training's passes through torch.compile, on a GPU as captured CUDA graphs. It pays off where launching
    kernels takes longer than running them, as with small images. Equal to eager up to rounding."""
