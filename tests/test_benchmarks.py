"""benchmarks/: what every result says of the machine, the instruction set and the code it was measured with."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import machine as module
from benchmarks.machine import machine

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MEASURING = sorted(path for path in BENCHMARKS.glob("*.py") if '"results"' in path.read_text())


@pytest.mark.parametrize("path", MEASURING, ids=lambda path: path.stem)
def test_every_benchmark_that_writes_a_result_says_what_it_was_measured_on(path: Path) -> None:
    assert "machine()" in path.read_text()


def test_there_are_benchmarks_that_write_results() -> None:
    assert {"bank", "icl", "loop", "stream"} <= {path.stem for path in MEASURING}


def test_what_limits_the_instruction_set_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in module.LIMITS:
        monkeypatch.delenv(name, raising=False)
    assert machine()["limited_by"] == {}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    measured_on = machine()
    assert measured_on["limited_by"] == {"ONEDNN_MAX_CPU_ISA": "SSE41"}
    assert measured_on["bf16_in_hardware"] in (False, None)  # None: not an x86 processor
    assert measured_on["instruction_set"] and measured_on["code"]
