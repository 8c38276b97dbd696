"""Runs of an earlier version: their report works, and --resume is an error that changes nothing.

tests/old_runs/layout_1.tar.xz holds three run directories that the version of 2026-11-21 (commit c4bf989) left of the
jobs beside it, with `--launcher local`; pictures and TensorBoard files were taken out, `unfinished` was killed.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from built_data import built_data
from small_jobs import quiet

from moe_dist.data.stream.stream import evaluation_batches
from moe_dist.engine.checkpoint import load_weights
from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.errors import UserError
from moe_dist.job import load_job
from moe_dist.methods.registry import method_class
from moe_dist.places import cache_folder
from moe_dist.report.build import build_report
from moe_dist.report.run import RunDirectory
from moe_dist.run.run import run_job
from moe_dist.train.task import open_method

OLD_RUNS = Path(__file__).parents[1] / "old_runs"


@pytest.fixture(scope="module")
def old_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(OLD_RUNS / "layout_1.tar.xz") as packed:
        packed.extractall(folder, filter="data")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", ["finished", "unfinished", "search"])
def test_going_on_with_an_old_run_is_refused_and_touches_nothing(old_runs: Path, name: str) -> None:
    before = contents(old_runs / name)
    job = load_job(OLD_RUNS / f"{name}.yaml")
    with pytest.raises(UserError, match=r"was made by an earlier version of moe-dist, .* `moe-dist report` reads it"):
        run_job(job, old_runs / name, "local", quiet())
    assert contents(old_runs / name) == before


def test_also_where_its_record_was_emptied(old_runs: Path) -> None:
    """The layout then follows from the files that are there."""
    record = (old_runs / "unfinished" / "run.json").read_bytes()
    (old_runs / "unfinished" / "run.json").write_bytes(b"")
    with pytest.raises(UserError, match="was made by an earlier version"):
        run_job(load_job(OLD_RUNS / "unfinished.yaml"), old_runs / "unfinished", "local", quiet())
    (old_runs / "unfinished" / "run.json").write_bytes(record)


@pytest.mark.parametrize("name", ["finished", "unfinished", "search"])
def test_the_report_of_an_old_run_has_the_figures_it_had(old_runs: Path, name: str) -> None:
    """They equal those in metrics.json, which the version that made the run has written; it knew no calibration."""
    path = old_runs / name / "metrics.json"
    before = json.loads(path.read_text()) if path.is_file() else None
    page = build_report(old_runs / name)
    assert page.stat().st_size > 10_000
    if before is not None:
        now = json.loads(path.read_text())
        assert {name: value for name, value in now.items() if not name.endswith("/ece")} == before
    status = RunDirectory(old_runs / name).status
    assert status == ("running" if name == "unfinished" else "finished")


def test_weights_of_an_old_checkpoint_give_the_predictions_they_gave(old_runs: Path) -> None:
    job = load_job(OLD_RUNS / "finished.yaml")
    data = built_data(job.data, job.seed, cache_folder())
    method = open_method(job, "icl", data)
    network = method_class("icl")(job.models["icl"], data.info).build(IN_ONE_PROCESS, {}, 0)
    (checkpoint,) = (old_runs / "finished/icl/checkpoints").glob("*/checkpoint_*")
    load_weights(checkpoint, network)
    labels = data.test.labels[data.test_samples]
    batches = evaluation_batches(data.test.images, data.test_samples, labels, data.config, batch_size=256)
    network.eval()
    found = np.concatenate([method.predict(network, batch.images).log_probs.detach().numpy() for batch in batches])
    with np.load(old_runs / "finished/icl/evaluation/predictions.npz") as kept:
        np.testing.assert_allclose(found[: len(labels)], kept["log_probs"], atol=1e-5)
