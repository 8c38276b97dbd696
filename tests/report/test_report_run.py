"""The reader of run directories: what it reads, what it forgives, what it refuses."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml
from synthetic_run import write_run

from moe_dist.errors import UserError
from moe_dist.job import dump_job, parse_job
from moe_dist.methods.registry import method_reports
from moe_dist.report.paper import paper_table
from moe_dist.report.run import RunDirectory

NAMES = ["ant", "bee", "cat"]


def test_models_keep_the_jobs_order_and_the_papers_names(tmp_path: Path) -> None:
    run = RunDirectory(write_run(tmp_path / "run", NAMES, methods=("dense", "dfcp")))
    assert [(model.name, model.title) for model in run.models.values()] == [("dense", "Dense"), ("dfcp", "DFCP-MoE")]


def test_steps_come_in_the_order_they_finished(tmp_path: Path) -> None:
    run = RunDirectory(write_run(tmp_path / "run", NAMES))
    assert list(run.models["dfcp"].steps) == ["features", "second_stage", "pseudo_labels"]
    assert run.models["dfcp"].steps["pseudo_labels"].seconds == 7.5
    assert run.models["dense"].steps == {}


def test_an_unfinished_step_does_not_count(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", NAMES)
    (path / "dfcp/steps/pseudo_labels/done.json").unlink()
    assert "pseudo_labels" not in RunDirectory(path).models["dfcp"].steps


def test_a_log_line_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", NAMES)
    whole = RunDirectory(path).models["dense"].log
    with (path / "dense/metrics.jsonl").open("a") as file:
        file.write('{"stage": "joint", "epo')
    assert RunDirectory(path).models["dense"].log == whole != []


def test_a_job_of_one_method_as_the_schema_writes_it(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", NAMES, methods=("dense",))
    job = parse_job({"name": "mine", "kind": "train", "method": "dense"}, "test")
    (path / "job.yaml").write_text(dump_job(job))
    run = RunDirectory(path)
    assert [(model.name, model.title) for model in run.models.values()] == [("dense", "dense")]
    assert run.paper is None and run.models["dense"].evaluation is not None


def test_two_models_of_one_method_keep_their_names(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", NAMES)
    methods = {"dense": "dense", "dense_small": "dense"}
    job = parse_job({"name": "two", "kind": "reproduce", "methods": methods, "paper_table": "dfcp/table3"}, "test")
    (path / "job.yaml").write_text(dump_job(job))
    run = RunDirectory(path)
    assert [(model.settings["name"], model.title) for model in run.models.values()] == [
        ("dense", "Dense"),
        ("dense", "dense small"),
    ]
    assert [model.paper_column for model in run.models.values()] == ["dense", None]


def test_the_papers_figures_stand_beside_the_only_model_of_its_method(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", NAMES)
    methods = {"dense_small": "dense"}
    job = parse_job({"name": "one", "kind": "reproduce", "methods": methods, "paper_table": "dfcp/table3"}, "test")
    (path / "job.yaml").write_text(dump_job(job))
    (model,) = RunDirectory(path).models.values()
    assert (model.title, model.paper_column) == ("dense small", "dense")


@pytest.mark.parametrize("missing", ["job.yaml", "run.json"])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, missing: str) -> None:
    path = write_run(tmp_path / "run", NAMES)
    (path / missing).unlink()
    with pytest.raises(UserError, match=f"not a run directory .it has no {missing}"):
        RunDirectory(path)


def test_a_cut_prediction_file_is_named(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", NAMES)
    file = path / "dense/evaluation/predictions.npz"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"dense/evaluation/predictions\.npz: cannot be read"):
        _ = RunDirectory(path).models["dense"].evaluation


class Explosive:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("a file of the run directory was unpickled",)


@pytest.mark.parametrize("bare", [True, False])
def test_nothing_is_unpickled(tmp_path: Path, bare: bool) -> None:
    path = write_run(tmp_path / "run", NAMES)
    file = path / "dense/evaluation/predictions.npz"
    if bare:
        file.write_bytes(pickle.dumps(Explosive()))
    else:
        np.savez(file, labels=np.array([Explosive()], dtype=object))
    with pytest.raises(UserError, match="cannot be read"):
        _ = RunDirectory(path).models["dense"].evaluation


def test_an_unknown_paper_table_names_the_choices() -> None:
    with pytest.raises(UserError, match=r"no table is called 'dfcp/table9'; choose one of .*dfcp/table3"):
        paper_table("dfcp/table9")


def test_the_papers_table_3_as_printed() -> None:
    # DFCP-MoE, Table 3, read from the paper's page.
    table = paper_table("dfcp/table3")
    printed = {
        "map": ("99.95 %", "92.67 %", "96.68 %"),
        "balanced_accuracy": ("0.99", "0.98", "0.99"),
        "latency_mean_ms": ("~51 ms", "~50 ms", "~71 ms"),
        "train_seconds_summed": ("~126 h", "~129 h", "~3.48 h"),
    }
    assert {
        key: tuple(row[m] for m in ("dfcp", "traditional_moe", "dense")) for key, row in table.rows.items()
    } == printed


def test_a_models_name_is_looked_up_before_its_method(tmp_path: Path) -> None:
    """Three models of one method: two are named as columns; the third is a variant of one of them, with no figures."""
    path = write_run(tmp_path / "run", NAMES)
    methods = {"moe": {"name": "icl", "col": False}, "icl": {"name": "icl"}, "wide": {"name": "icl"}}
    job = parse_job({"name": "x", "kind": "reproduce", "methods": methods, "paper_table": "icl/table4"}, "test")
    (path / "job.yaml").write_text(dump_job(job))
    models = RunDirectory(path).models.values()
    assert [(model.title, model.paper_column) for model in models] == [
        ("MoE", "moe"),
        ("MoE + CoL + DOL (ICL)", "icl"),
        ("wide", None),
    ]


def test_a_method_without_a_column_has_none(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", NAMES, methods=("dense",), paper_table="icl/table4")
    assert [(model.title, model.paper_column) for model in RunDirectory(path).models.values()] == [("dense", None)]


def test_icls_tables_as_printed() -> None:
    # ICL, Tables 1 to 4, read from the paper.
    cifar = {f"icl/cifar{classes}_lt_{factor}": (classes, factor) for classes in (10, 100) for factor in (10, 50, 100)}
    printed = {key: paper_table(key).rows["top1"]["icl"] for key in cifar}
    assert printed == {
        "icl/cifar100_lt_100": "57.6 %",
        "icl/cifar100_lt_50": "61.3 %",
        "icl/cifar100_lt_10": "69.3 %",
        "icl/cifar10_lt_100": "87.9 %",
        "icl/cifar10_lt_50": "89.7 %",
        "icl/cifar10_lt_10": "91.9 %",
    }
    assert [paper_table("icl/imagenet_lt").rows["top1"][key] for key in ("icl_2experts", "icl")] == ["59.5 %", "60.2 %"]
    bands = ("top1", "top1_many", "top1_medium", "top1_few")
    species = paper_table("icl/inat2018").rows
    assert [species[band]["icl"] for band in bands] == ["75.9 %", "74.9 %", "75.9 %", "76.1 %"]
    ablation = paper_table("icl/table4").rows["top1"]
    assert list(ablation.values()) == ["50.34 %", "54.42 %", "56.50 %", "56.56 %", "57.59 %"]


def test_every_figure_of_a_paper_has_a_title() -> None:
    assert all(method_reports()[name].papers for name in ("dfcp", "icl"))
    for report in method_reports().values():
        if report.papers is None:
            continue
        tables = yaml.safe_load(report.papers.read_text())["tables"]
        (paper,) = {key.partition("/")[0] for key in tables}
        assert method_reports()[paper] is report  # idec and dec have theirs from edcwrn's paper
        for key in tables:
            table = paper_table(key, "Speckle 0.1" if key.startswith("edcwrn/table5_") else "")
            assert all(row.keys() <= table.titles.keys() for row in table.rows.values()), key


def test_the_job_file_that_a_user_copied_into_a_run_is_resolved(tmp_path: Path) -> None:
    """As the sentence about a job.yaml that a power cut emptied advises."""
    path = write_run(tmp_path / "run", NAMES, methods=("dense",))
    (path / "job.yaml").write_text("name: demo  # by hand\nkind: reproduce\nmethods: {dense: dense}\n")
    run = RunDirectory(path)
    assert run.job["title"] == "" and run.job["seed"] == 0 and run.models["dense"].settings["epochs"] == 100
    assert run.job_text == dump_job(parse_job(run.job, "resolved"))


def test_a_run_of_a_later_version_whose_job_has_fields_unknown_here_is_read(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", NAMES, methods=("dense",))
    (path / "job.yaml").write_text((path / "job.yaml").read_text() + "of_a_later_version: 1\n")
    assert RunDirectory(path).job["of_a_later_version"] == 1
