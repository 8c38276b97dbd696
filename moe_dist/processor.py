"""What this machine's processor computes with, as far as oneDNN may use it: torch's convolutions and products are its.

Only x86 processors are known, from /proc/cpuinfo. Of any other, and where there is no such file, the answer is None.
"""

from __future__ import annotations

import os
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
"""The parts of AVX-512 that oneDNN and torch ask for."""
BF16 = frozenset({"avx512_bf16", "amx_bf16"})
"""Either multiplies bfloat16 numbers; without both they are converted to float32 and back."""
LIMITS_WITHOUT_AVX512 = frozenset({"sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2"})
LIMITS_WITHOUT_BF16 = LIMITS_WITHOUT_AVX512 | {"avx512_core", "avx512_core_vnni"}
"""What ONEDNN_MAX_CPU_ISA may say; what oneDNN does not know is no limit."""


def has_avx512() -> bool | None:
    """Whether there is AVX-512 and oneDNN may use it."""
    flags = processor_flags()
    return None if flags is None else flags >= AVX512 and onednn_limit() not in LIMITS_WITHOUT_AVX512


def multiplies_bf16() -> bool | None:
    """Whether bfloat16 is the processor's own (AVX512-BF16, AMX) and oneDNN may use it; where not, it is emulated."""
    flags = processor_flags()
    return None if flags is None else bool(flags & BF16) and onednn_limit() not in LIMITS_WITHOUT_BF16


def processor_flags() -> frozenset[str] | None:
    """The flags of an x86 processor, as Linux names them."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.is_file() else []
    flags = next((line for line in lines if line.startswith("flags")), None)
    return None if flags is None else frozenset(flags.partition(":")[2].split())


def onednn_limit() -> str | None:
    """The instruction set that the environment holds oneDNN to, in small letters as it reads it; None: no limit."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    return limit.lower() if limit else None
