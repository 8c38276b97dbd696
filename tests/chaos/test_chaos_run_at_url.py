"""A run on an S3 server that is away for ten seconds during a checkpoint loses nothing, and ends when all is there."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_jobs
from rich.console import Console
from run_folders import log_of
from s3_server import SECRET, S3Server, serving_s3
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from moe_dist.errors import UserError
from moe_dist.places import RECORD
from moe_dist.record.run_place import run_place
from moe_dist.run.run import choose_run_place, run_job
from moe_dist.terminal import Show
from moe_dist.train import store_worker

pytestmark = pytest.mark.chaos

AWAY_SECONDS = 10
MODEL = "traditional_moe"


@pytest.fixture(scope="module")
def store() -> Iterator[S3Server]:
    with serving_s3("runs") as server:
        yield server


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in log_of(folder / MODEL) if line["kind"] == "step"]


def scalars(url: str) -> list[int]:
    """The steps of the losses that TensorBoard finds below a URL."""
    found = EventMultiplexer().AddRunsFromDirectory(url).Reload()
    (run,) = found.Runs()
    return [event.step for event in found.Scalars(run, "step/loss")]


def test_a_store_that_is_away_during_a_checkpoint_costs_nothing(
    store: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_jobs.traditional()
    run_job(job, tmp_path / "unbroken", "local", small_jobs.quiet())
    outages: list[float] = []
    real, first = store_worker.put_file, threading.Lock()

    def put_file(local: Path, url: str, *further: Any) -> None:
        if "checkpoint_00000012" in url and first.acquire(blocking=False):  # of several threads, and for good
            outages.append(time.monotonic())
            store.be_away(AWAY_SECONDS)
        real(local, url, *further)

    monkeypatch.setattr(store_worker, "put_file", put_file)
    monkeypatch.setenv("MOE_DIST_NODE_CACHE", str(tmp_path / "node"))
    console = Console(record=True, width=300, quiet=False, file=None)
    place = choose_run_place(job, run_place("--out")("s3://runs/x"), resume=False)
    with place.kept(Show(console)) as mirror:
        run_job(job, place.folder, "local", Show(console), mirror=mirror)
    assert time.monotonic() - outages[0] >= AWAY_SECONDS

    monkeypatch.setenv("MOE_DIST_NODE_CACHE", str(tmp_path / "elsewhere"))
    seen = run_place("RUN")("s3://runs/x")
    with seen.at_hand():
        assert json.loads((seen.folder / RECORD).read_text())["status"] == "finished"
        assert losses(seen.folder) == losses(tmp_path / "unbroken")
        assert (seen.folder / "report.html").is_file()
        names = {path.name for path in seen.folder.glob(f"{MODEL}/trainings/*/checkpoints/checkpoint_*")}
    assert {"checkpoint_00000012", "checkpoint_00000018"} <= names
    assert SECRET not in console.export_text()
    monkeypatch.setenv("S3_ENDPOINT", f"http://127.0.0.1:{store.port}")
    assert scalars("s3://runs/x") == [step for step, _ in losses(tmp_path / "unbroken")]


def test_without_the_right_to_write_it_says_so_before_it_trains(
    store: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE_DIST_NODE_CACHE", str(tmp_path / "node"))
    job = small_jobs.traditional()
    place = choose_run_place(job, run_place("--out")("s3://no-such-bucket/x"), resume=False)
    with (
        pytest.raises(UserError, match=r"s3://no-such-bucket/x/job\.yaml: cannot be written"),
        place.kept(small_jobs.quiet()) as mirror,
    ):
        run_job(job, place.folder, "local", small_jobs.quiet(), mirror=mirror)
    assert not list(tmp_path.rglob("metrics.jsonl"))
