"""DFCP's first stage by a deep clusterer: run, killed and gone on with, divided, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import step_of
from small_jobs import dfcp, quiet

import moe_dist.train.loop as loop
from moe_dist.errors import UserError
from moe_dist.job import Job
from moe_dist.places import ModelFolder
from moe_dist.run.run import run_job

DEEP = {
    "network": {"hidden": [64], "code": 8, "scaling": "power"},
    "pretrain": {"steps": 400},
    "batch_size": 64,
    "steps": 9,
    "refresh_every": 4,
    "kmeans_restarts": 1,
}


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def without_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports take longer than these runs."""
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)


def job(name: str = "edcwrn", deep: dict[str, Any] | None = None, space: str = "features", **changes: Any) -> Job:
    method = dfcp().models["dfcp"].model_dump(mode="json")
    method["clusters"] |= {"clusterer": DEEP | {"name": name} | (deep or {}), "space": space}
    return dfcp(method=method | {"joint": method["joint"] | {"epochs": 1}}, **changes)


def run(asked: Job, folder: Path) -> Path:
    run_job(asked, folder, "local", quiet())
    return folder / "dfcp"


def first_stage(model: Path) -> dict[str, np.ndarray]:
    with np.load(step_of(model, "first_stage") / "arrays.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moe_dist.report.build.build_report", lambda path: path)
        return run(job(), tmp_path_factory.mktemp("unbroken") / "run")


def test_clusters_of_features_go_on_to_the_second_stage(unbroken: Path) -> None:
    assert {"clusterer_pretraining", "clusterer"} <= ModelFolder(unbroken).current().earlier.keys()
    found = first_stage(unbroken)
    labels, centroids = found["labels"], found["centroids"]
    assert labels.min() == 0 and labels.max() + 1 == len(centroids) > 5
    values = json.loads((step_of(unbroken, "second_stage") / "result.json").read_text())["values"]
    assert values["stage1_purity"] > 0.3


@pytest.mark.chaos
@pytest.mark.parametrize(("stage", "step"), [("clusterer_pretraining", 30), ("clusterer", 6)])
def test_killed_in_the_clusterer_it_ends_with_the_same_clusters(
    stage: str, step: int, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = loop.train_step, job(checkpoint={"every_steps": 2})

    def step_or_die(method: Any, session: Any, batch: Any, progress: Any) -> Any:
        if progress.stage == stage and progress.step == step:
            raise Killed
        return real(method, session, batch, progress)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "train_step", step_or_die)
        run(asked, tmp_path)
    ours, theirs = first_stage(run(asked, tmp_path)), first_stage(unbroken)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_codes_can_be_the_space_of_the_second_stage(tmp_path: Path) -> None:
    found = first_stage(run(job("idec", space="codes"), tmp_path))
    np.testing.assert_allclose(np.linalg.norm(found["codes"], axis=1), 1, rtol=1e-4)
    assert found["centroids"].shape[1] == 8


def test_several_starts_are_tried_on_features_too(tmp_path: Path) -> None:
    model = run(job("idec", {"starts": {"count": 2, "steps": 4}, "kmeans_restarts": 4}), tmp_path)
    assert {"clusterer_start_0", "clusterer_start_1"} <= ModelFolder(model).current().earlier.keys()
    assert len(first_stage(model)["centroids"]) > 5


def test_settings_that_mean_nothing_here_are_refused() -> None:
    with pytest.raises(UserError, match="augment and floor are not settings of a clusterer of features"):
        job(deep={"augment": {"shift": 0.1}})
    with pytest.raises(UserError, match="choose one of kmeans, edcwrn, idec, dec"):
        job("dbscan")
    with pytest.raises(UserError, match="space = codes: k-means has none"):
        dfcp(method={"name": "dfcp", "clusters": {"space": "codes"}})
