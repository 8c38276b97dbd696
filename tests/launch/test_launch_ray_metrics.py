"""Metrics of a training for Prometheus: what is exported of the log, the dashboard's names, and a real scrape."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from small_jobs import quiet, traditional

from moe_dist.launch import ray_metrics
from moe_dist.launch.choose import open_launcher
from moe_dist.launch.ray_metrics import COUNTERS, GAUGES, OF_EXPERTS, PREFIX, MeteredLog, TrainingMetrics
from moe_dist.run.run import run_job

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana.json"
EXPORTED = {f"ray_{PREFIX}{name}" for name in (*GAUGES, *OF_EXPERTS)} | {
    f"ray_{PREFIX}{name}_total" for name in COUNTERS
}


class Told:
    """Stands for a metric of Ray's: what it is told, by name and tags."""

    values: dict[tuple[str, ...], float] = {}  # noqa: RUF012

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name, self.tag_keys = name.removeprefix(PREFIX), tag_keys

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert tuple(tags) == self.tag_keys
        self.values[(self.name, *tags.values())] = value

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert tuple(tags) == self.tag_keys
        self.values[(self.name, *tags.values())] = self.values.get((self.name, *tags.values()), 0) + value


class Kept:
    """Stands for the log."""

    def __init__(self) -> None:
        self.lines: list[Any] = []

    def write(self, *line: Any, **facts: Any) -> None:
        self.lines.append((line, facts))

    def close(self) -> None:
        self.lines.append("closed")


def test_lines_of_the_log_are_exported_and_written_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_metrics, "Gauge", Told)
    monkeypatch.setattr(ray_metrics, "Counter", Told)
    kept, metrics = Kept(), TrainingMetrics("demo", "dfcp")
    log = MeteredLog(kept, metrics)
    step = {"loss": 0.5, "loss/combined": 0.5, "gradient_norm": 2.0}
    log.write("step", "joint", 1, 42, step, images_per_second=900.0, step_seconds=0.05, of_steps=60)
    log.write("epoch", "joint", 1, 42, {"load/expert_0": 0.75, "load/expert_1": 0.25, "val/top1": 0.9}, of_steps=60)
    metrics.checkpoint(0.5)
    metrics.checkpoint(0.25)
    log.close()
    assert Told.values == {
        ("loss", "demo", "dfcp"): 0.5,
        ("gradient_norm", "demo", "dfcp"): 2.0,
        ("images_per_second", "demo", "dfcp"): 900.0,
        ("step_seconds", "demo", "dfcp"): 0.05,
        ("step", "demo", "dfcp"): 42,
        ("of_steps", "demo", "dfcp"): 60,
        ("epoch", "demo", "dfcp"): 1,
        ("load", "demo", "dfcp", "0"): 0.75,
        ("load", "demo", "dfcp", "1"): 0.25,
        ("checkpoints", "demo", "dfcp"): 2,
        ("checkpoint_seconds", "demo", "dfcp"): 0.75,
    }
    facts = {"images_per_second": 900.0, "step_seconds": 0.05, "of_steps": 60}
    assert kept.lines[0] == (("step", "joint", 1, 42, step), facts) and kept.lines[-1] == "closed"


def test_the_dashboard_draws_what_is_exported_and_all_of_it() -> None:
    text = DASHBOARD.read_text()
    drawn = set(re.findall(r"ray_moe_dist_\w+", text))
    assert drawn - EXPORTED == set(), "named and not exported"
    assert EXPORTED - drawn == {"ray_moe_dist_epoch"}, "exported and not drawn"
    board = json.loads(text)
    tags = set(re.findall(r"\{\{(\w+)\}\}", text)) | set(re.findall(r"(\w+)=~", text))
    assert tags == {*ray_metrics.TAGS, "expert", "kind"}
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", text)) - {"__all"} == variables
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(places) == len(set(places)), "no panel lies on another"


@pytest.mark.slow
def test_a_training_is_seen_at_the_nodes_metrics_port(tmp_path: Path) -> None:
    """All but restarts, as there are none, and shares of the gradient, which this method does not compare."""
    seen: dict[str, str] = {}
    ended = threading.Event()

    def scrape() -> None:
        import ray

        while not ended.is_set():
            if ray.is_initialized():
                port = ray.nodes()[0]["MetricsExportPort"]
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                    lines = [line for line in answer.read().decode().splitlines() if line.startswith("ray_moe_dist")]
                seen.update((line.partition("{")[0], line) for line in lines)
            time.sleep(1)

    scraper = threading.Thread(target=scrape)
    job = traditional(epochs=40, clip_norm=10.0)
    with open_launcher("ray", job, tmp_path, quiet()) as launcher, pytest.MonkeyPatch.context() as patch:
        patch.setattr("moe_dist.run.run.open_launcher", lambda *_: nullcontext(launcher))
        scraper.start()
        try:
            run_job(job, tmp_path / "run", "ray", quiet())
        finally:
            ended.set()
            scraper.join()
    expected = EXPORTED - {"ray_moe_dist_restarts_total", "ray_moe_dist_gradient_share"}
    assert set(seen) & EXPORTED == expected
    assert 'job_name="small"' in seen["ray_moe_dist_step"] and 'model="traditional_moe"' in seen["ray_moe_dist_step"]
