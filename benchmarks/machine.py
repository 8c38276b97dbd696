"""What figures were measured on and with: the head of every benchmark's result.

A processor with AVX2 and no AVX-512 is emulated on one that has it by two variables, which are in the result:

    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/icl.py
"""

from __future__ import annotations

import os
from typing import Any

import torch

from moe_dist.processor import multiplies_bf16
from moe_dist.record.provenance import code_version, hardware

LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


def machine() -> dict[str, Any]:
    """Hardware, instruction set, the code with its commit, and the load by other programs: ask before anything is run.

    instruction_set: what torch's own kernels use; limited_by: variables that hold oneDNN or torch to less than the
    processor has; bf16_in_hardware: null for a processor that is not known (moe_dist/processor.py).
    """
    return {
        "hardware": hardware(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "limited_by": {name: os.environ[name] for name in LIMITS if os.environ.get(name)},
        "bf16_in_hardware": multiplies_bf16(),
        "torch": torch.__version__,
        "code": code_version(),
        "load_before": round(os.getloadavg()[0], 1),
    }
