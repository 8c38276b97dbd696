"""The instruction sets of this machine's processor that oneDNN, torch's library for convolutions, may use.

Only x86 processors are known, from /proc/cpuinfo. For others, and without this file, functions return None.
"""

from __future__ import annotations

import os
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
"""The parts of AVX-512 that oneDNN and torch need."""
BF16 = frozenset({"avx512_bf16", "amx_bf16"})
"""Instruction sets that multiply bfloat16 numbers; without either they are converted to float32 and back."""
LIMITS_WITHOUT_AVX512 = frozenset({"sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2"})
LIMITS_WITHOUT_BF16 = LIMITS_WITHOUT_AVX512 | {"avx512_core", "avx512_core_vnni"}
LIMITS_WITHOUT_AMX = LIMITS_WITHOUT_BF16 | {"avx512_core_bf16", "avx512_core_fp16", "avx10_1_512"}
"""Values of ONEDNN_MAX_CPU_ISA, in lower case, that disable them. oneDNN ignores unknown values."""


def has_avx512() -> bool | None:
    """Whether the processor has AVX-512 and oneDNN may use it."""
    flags = processor_flags()
    return None if flags is None else flags >= AVX512 and onednn_limit() not in LIMITS_WITHOUT_AVX512


def multiplies_bf16() -> bool | None:
    """Whether the processor multiplies bfloat16 (AVX512-BF16, AMX) and oneDNN may use it; otherwise it is emulated."""
    flags = processor_flags()
    return None if flags is None else bool(flags & BF16) and onednn_limit() not in LIMITS_WITHOUT_BF16


def has_amx() -> bool | None:
    """Whether the processor multiplies bfloat16 by AMX, which is the fastest, and oneDNN may use it."""
    flags = processor_flags()
    return None if flags is None else "amx_bf16" in flags and onednn_limit() not in LIMITS_WITHOUT_AMX


def processor_flags() -> frozenset[str] | None:
    """The flags of an x86 processor, by their names in Linux."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.is_file() else []
    flags = next((line for line in lines if line.startswith("flags")), None)
    return None if flags is None else frozenset(flags.partition(":")[2].split())


def onednn_limit() -> str | None:
    """The instruction set to which the environment limits oneDNN, in lower case; None without a limit."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    return limit.lower() if limit else None
