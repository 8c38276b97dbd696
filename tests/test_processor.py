"""processor.py: the flags of an x86 processor, limits by the environment, and unknown processors."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from moe_dist import processor
from moe_dist.record import provenance

AVX2 = "fpu sse4_1 avx avx2 fma"
AVX512 = f"{AVX2} avx512f avx512dq avx512bw avx512vl"


def write_cpuinfo(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Two cores with `text` as a line of each."""
    path = folder / "cpuinfo"
    path.write_text("".join(f"processor\t: {core}\nmodel name\t: made up\n{text}\n\n" for core in range(2)))
    monkeypatch.setattr(processor, "CPUINFO", path)


@pytest.fixture(autouse=True)
def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)


@pytest.mark.parametrize(
    ("flags", "limit", "avx512", "bf16"),
    [
        (AVX2, "", False, False),
        (AVX512, "", True, False),
        (f"{AVX512} avx512_vnni avx512_bf16", "", True, True),
        (f"{AVX512} amx_tile amx_bf16", "", True, True),
        (f"{AVX512} avx512_bf16", "AVX512_CORE_BF16", True, True),
        (f"{AVX512} avx512_bf16", "AVX512_CORE", True, False),
        (f"{AVX512} avx512_bf16", "AVX2", False, False),
        (f"{AVX512} avx512_bf16", "avx2_vnni_2", False, False),
        (f"{AVX512} avx512_bf16", "a limit that oneDNN does not know", True, True),
        (f"{AVX2} avx512f", "", False, False),  # Knights Landing: neither oneDNN nor torch calls that AVX-512
    ],
)
def test_flags_and_limit(
    flags: str, limit: str, avx512: bool, bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cpuinfo(tmp_path, monkeypatch, f"flags\t\t: {flags}")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert (processor.has_avx512(), processor.multiplies_bf16()) == (avx512, bf16)


@pytest.mark.parametrize(
    ("flags", "limit", "amx"),
    [
        (f"{AVX512} amx_tile amx_bf16", "", True),
        (f"{AVX512} amx_tile amx_bf16", "AVX512_CORE_AMX", True),
        (f"{AVX512} amx_tile amx_bf16", "AVX512_CORE_FP16", False),
        (f"{AVX512} amx_tile amx_int8", "", False),
        (f"{AVX512} avx512_bf16", "", False),
    ],
)
def test_amx_is_named_with_the_hardware(
    flags: str, limit: str, amx: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cpuinfo(tmp_path, monkeypatch, f"flags\t\t: {flags}")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert processor.has_amx() is amx
    assert (", AMX)" in provenance.hardware.__wrapped__()) is amx


def test_the_older_name_of_the_limit_counts_where_the_newer_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert processor.onednn_limit() == "avx2"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "ALL")
    assert processor.onednn_limit() == "all"


def test_of_an_arm_processor_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cpuinfo(tmp_path, monkeypatch, "Features\t: fp asimd bf16")
    assert processor.has_avx512() is processor.multiplies_bf16() is None


def test_nothing_is_said_without_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "none")
    assert processor.has_avx512() is processor.multiplies_bf16() is None


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not processor.CPUINFO.is_file(), reason="of x86 processors under Linux"
)
def test_this_processor_is_the_one_that_torch_sees() -> None:
    """Compare with torch, which asks the processor itself."""
    bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert (processor.has_avx512(), processor.multiplies_bf16()) == (torch.cpu._is_avx512_supported(), bf16)
