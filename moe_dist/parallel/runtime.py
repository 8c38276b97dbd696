"""Starts DeepSpeed in this process: right accelerator, no compiler, no log messages. Import deepspeed from here."""

from __future__ import annotations

import logging
import os
import warnings

import torch

# DeepSpeed chooses its accelerator while it is imported. The process group knows which: on a machine with GPUs, a job
# on the CPU has gloo.
_on_gpu = torch.distributed.get_backend() == "nccl" if torch.distributed.is_initialized() else torch.cuda.is_available()
os.environ.setdefault("DS_ACCELERATOR", "cuda" if _on_gpu else "cpu")

import deepspeed  # noqa: E402
import deepspeed.ops  # noqa: E402

logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
# It calls collectives by names that torch 2.13 deprecates.
warnings.filterwarnings("ignore", message=r"`torch\.distributed\..* is deprecated", category=FutureWarning)
# On a CPU, init_distributed compiles an operator that only inference uses: 69 s, and a failure without a compiler.
deepspeed.ops.__compatible_ops__ = {}


def start_deepspeed(device: torch.device) -> None:
    """Let DeepSpeed use the process group that the launcher (Ray Train's or the local one) has made, and `device`."""
    assert torch.distributed.is_initialized(), "the launcher makes the process group"
    # Ray shows a worker its own GPUs only, so that the GPU's number is not the rank on the node.
    os.environ["LOCAL_RANK"] = str(device.index or 0)
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend())


__all__ = ["deepspeed", "start_deepspeed"]
