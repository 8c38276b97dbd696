"""The demo as shipped, on Ray: it reaches what the README says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_reaches_its_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "moe_dist.cli", "run", str(ROOT / "jobs" / "demo.yaml"), "--out", "run"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=1100)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["dfcp/top1"] >= 0.96
    assert metrics["dfcp/purity"] >= 0.95
    assert metrics["dfcp/pseudo_label_accuracy"] >= 0.95
    assert {"traditional_moe/map", "dense/map", "dense/latency_median_ms"} <= metrics.keys()
    assert (tmp_path / "run" / "report.html").stat().st_size > 100_000
