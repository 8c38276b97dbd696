"""`moe-dist review`: what is listed and shown, and the list read back by the next run."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_data import built_data
from small_jobs import dfcp
from typer.testing import CliRunner

from moe_dist.cli import app
from moe_dist.data.opened.opened import OpenedData
from moe_dist.job import dump_job
from moe_dist.methods.dfcp.config import DfcpConfig
from moe_dist.methods.dfcp.trusted import split
from moe_dist.methods.phases import StepResult, Workspace
from moe_dist.places import Current, ModelFolder, cache_folder
from moe_dist.record.results import save_result

TRUSTED = 80


@pytest.fixture
def data() -> OpenedData:
    job = dfcp()
    return built_data(job.data, job.seed, cache_folder())


@pytest.fixture
def run(tmp_path: Path, data: OpenedData) -> Path:
    """As far as pseudo-labels: 80 trusted images; the first clustered ones are two outliers and three uncertain."""
    job, folder = dfcp(), tmp_path / "run"
    folder.mkdir()
    (folder / "job.yaml").write_text(dump_job(job))
    samples = data.train_samples
    trusted, clustered = samples[:TRUSTED], samples[TRUSTED:]
    true = data.train.labels
    distances = np.full(len(clustered), 0.1)
    distances[:5] = [0.9, 0.7, 0.49, 0.48, 0.47]
    pseudo = np.where(distances <= 0.5, true[clustered], -1)
    steps = {
        "split": StepResult({}, {"trusted": trusted, "clustered": clustered, "labels": true[trusted]}),
        "pseudo_labels": StepResult(
            {"threshold": 0.5},
            {"pseudo": pseudo, "merged": pseudo, "nearest": true[clustered], "distances": distances},
        ),
    }
    model = ModelFolder(folder / "dfcp")
    for name, result in steps.items():
        save_result(model.step(name, "0" * 12), result, "0" * 12, 0.0, 0)
    model.point_at(Current({name: model.step(name, "0" * 12) for name in steps}))
    return folder


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def invoke(*words: Any) -> Any:
    return CliRunner().invoke(app, ["review", *map(str, words)])


def test_what_to_look_at_is_listed_worst_first_and_read_back(run: Path, data: OpenedData, tmp_path: Path) -> None:
    said = invoke(run, "--uncertain", 2)
    assert said.exit_code == 0 and "80 trusted, 2 outlier, 2 uncertain" in said.output
    rows = lines(run / "review" / "review.csv")
    assert [row["state"] for row in rows] == ["trusted"] * TRUSTED + ["outlier"] * 2 + ["uncertain"] * 2
    names, classes = data.train.names(), data.info.class_names
    looked_at = data.train_samples[TRUSTED : TRUSTED + 4].tolist()
    assert [row["image"] for row in rows[TRUSTED:]] == [names[sample] for sample in looked_at]
    assert [row["suggestion"] for row in rows[TRUSTED:]] == [classes[data.train.labels[n]] for n in looked_at]
    assert [row["distance"] for row in rows[TRUSTED:]] == ["1.800", "1.400", "0.980", "0.960"]
    assert all(bool(row["label"]) == (row["state"] == "trusted") for row in rows)
    page = (run / "review" / "review.html").read_text()
    assert page.count('class="outlier"') == 2 and page.count('class="uncertain"') == 2

    text = (run / "review" / "review.csv").read_text()
    first, second = (row["image"] for row in rows[TRUSTED : TRUSTED + 2])
    filled = tmp_path / "filled.csv"
    filled.write_text(text.replace(f"\n{first},,", f"\n{first},3,").replace(f"\n{second},,", f"\n{second},4,"))
    config = DfcpConfig.model_validate({"trusted": {"labels": str(filled)}})
    (told,) = config.notices()
    assert told.startswith("trusted.labels: 2 labels are new by a review")
    result = split(config.trusted, workspace(data)).arrays
    assert sorted(result["trusted"]) == sorted([*data.train_samples[:TRUSTED], *looked_at[:2]])
    label_of = dict(zip(result["trusted"].tolist(), result["labels"].tolist()))
    assert [label_of[sample] for sample in looked_at[:2]] == [3, 4]


def workspace(data: OpenedData) -> Workspace:
    fields: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(Workspace))
    fields |= {"info": data.info, "groups": data.train.groups, "names": data.train.names, "results": {}}
    return Workspace(**fields | {"samples": data.train_samples, "true_labels": data.train.labels})


def test_a_list_is_never_written_over_and_other_folders_are_told(run: Path, tmp_path: Path) -> None:
    assert invoke(run).exit_code == 0
    again = invoke(run)
    assert again.exit_code != 0 and "is there already, perhaps filled in" in str(again.exception)
    assert invoke(run, "--out", tmp_path / "other").exit_code == 0
    for words, said in (
        ((run, "--model", "dense", "--out", tmp_path / "x"), "model 'dense' has no pseudo-labels"),
        ((tmp_path / "other",), "neither a run directory"),
    ):
        refused = invoke(*words)
        assert refused.exit_code != 0 and said in str(refused.exception)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "job.yaml").write_text((run / "job.yaml").read_text())
    assert "no model has pseudo-labels yet" in str(invoke(empty).exception)
