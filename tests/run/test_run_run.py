"""Runs from data to report by the local launcher: reused results, resume, errors, divergence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import checkpoints_of, evaluation_of, log_of, step_of, training_of
from safetensors.numpy import load_file
from small_jobs import dfcp, quiet, sparse, traditional

import moe_dist.run.run as run_module
import moe_dist.train.loop as loop
from moe_dist.data.opened.opened import OpenedData
from moe_dist.errors import UserError
from moe_dist.job import Job
from moe_dist.record.restarts import read_attempts
from moe_dist.record.results import load_result
from moe_dist.report.run import RunDirectory
from moe_dist.report.tables import steps_table
from moe_dist.run.run import choose_run_directory, require_same_run, run_job
from moe_dist.terminal import duration
from moe_dist.train.checkpoints import checkpoints, newest_checkpoint


def run(job: Job, folder: Path) -> dict[str, Any]:
    run_job(job, folder, "local", quiet())
    return json.loads((folder / "metrics.json").read_text())


def last_weights(folder: Path, model: str) -> dict[str, np.ndarray]:
    """Every tensor of the newest checkpoint: parameters, moments and random states."""
    newest = newest_checkpoint(checkpoints_of(folder / model))
    assert newest is not None
    return {
        f"{path.name}/{name}": tensor
        for path in newest.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def curve(folder: Path, model: str) -> list[tuple[int, float]]:
    """(step, loss) of every logged step."""
    lines = log_of(folder / model)
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "step"]


def assert_equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert np.array_equal(left[name], right[name], equal_nan=name.startswith("random")), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of the small traditional mixture."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(traditional(), folder)
    return folder


def test_a_run_leaves_what_it_promises(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert {"job.yaml", "run.json", "metrics.json", "report.html", "figures", "traditional_moe"} <= names
    model = {path.name for path in (whole / "traditional_moe").iterdir()}
    assert model == {"current.json", "trainings"}
    training = {path.name for path in training_of(whole / "traditional_moe").iterdir()}
    assert training == {
        "settings.json",
        "attempts.jsonl",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "evaluations",
        "training.json",
    }
    record = json.loads((whole / "run.json").read_text())
    assert record["status"] == "finished" and record["counts"]["test"] == pytest.approx(60, abs=5)
    steps = [step for step, _ in curve(whole, "traditional_moe")]
    assert steps == list(range(1, 3 * -(-record["counts"]["train"] // 48) + 1))


def test_the_steps_table_says_how_long_steps_waited_for_checkpoints(whole: Path) -> None:
    lines = read_attempts(training_of(whole / "traditional_moe"))
    epochs = {line["step"] for line in log_of(whole / "traditional_moe") if line["kind"] == "epoch"}
    waited = {line["saved"]: line["seconds"] for line in lines if "saved" in line}
    assert waited.keys() == epochs and min(waited.values()) > 0
    (row,) = (row for row in steps_table(RunDirectory(whole)).rows if row.cells[0] == "checkpoints")
    assert row.cells[1:] == (duration(sum(waited.values())), "3 saved, for which steps waited so long")


def test_the_mixture_learns(whole: Path) -> None:
    losses = [loss for _, loss in curve(whole, "traditional_moe")]
    assert losses[-1] < losses[0] - 0.05, "18 steps lower the loss from log 10"


def test_a_second_run_into_the_same_folder_does_nothing_again(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    before = {path: path.stat().st_mtime_ns for path in (folder / "traditional_moe").rglob("*") if path.is_file()}
    run(traditional(), folder)
    after = {path: path.stat().st_mtime_ns for path in (folder / "traditional_moe").rglob("*") if path.is_file()}
    assert before == after


def test_the_same_job_gives_the_same_run_also_with_dropout(tmp_path: Path) -> None:
    gate = traditional().method.gate.model_dump() | {"dropout": 0.5}
    for name in ("once", "again"):
        run(traditional(gate=gate, epochs=1), tmp_path / name)
    assert curve(tmp_path / "once", "traditional_moe") == curve(tmp_path / "again", "traditional_moe")


class Killed(BaseException):
    """Raised in place of the end of the process."""


@pytest.mark.parametrize("step", [*(pytest.param(step, marks=pytest.mark.chaos) for step in (1, 5, 6)), 7, 13])
def test_a_run_killed_at_a_step_ends_bit_identical(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    real_step, folder = loop.train_step, tmp_path / "run"

    def step_or_die(method: Any, session: Any, batch: Any, progress: Any) -> Any:
        if progress.step == step:
            raise Killed
        return real_step(method, session, batch, progress)

    job = traditional(checkpoint={"every_steps": 2})
    monkeypatch.setattr(loop, "train_step", step_or_die)
    with pytest.raises(Killed):
        run(job, folder)
    monkeypatch.setattr(loop, "train_step", real_step)
    run(job, folder)
    assert_equal(last_weights(folder, "traditional_moe"), last_weights(whole, "traditional_moe"))
    assert curve(folder, "traditional_moe") == curve(whole, "traditional_moe")


@pytest.mark.parametrize("die_at", [None, 27])
def test_the_epoch_chosen_on_validation_is_kept_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, die_at: int | None
) -> None:
    """The fourth of six epochs, of 6 steps each; also if the run is killed in the fifth and resumed."""
    real_step, folder, job = loop.train_step, tmp_path / "run", traditional(epochs=6, checkpoint={"keep": 1})

    def validated(session: Any, ranks: int) -> dict[str, float]:
        return {"loss": 1.0, "top1": [0.1, 0.9, 0.2, 0.9, 0.3, 0.2][session.stream.position.epoch - 1]}

    def step_or_die(method: Any, session: Any, batch: Any, progress: Any) -> Any:
        if progress.step == die_at:
            raise Killed
        return real_step(method, session, batch, progress)

    monkeypatch.setattr(loop, "validate", validated)
    monkeypatch.setattr(loop, "train_step", step_or_die)
    if die_at:
        with pytest.raises(Killed):
            run(job, folder)
        monkeypatch.setattr(loop, "train_step", real_step)
    metrics = run(job, folder)

    kept = checkpoints_of(folder / "traditional_moe")
    assert [path.name for path in checkpoints(kept)] == ["checkpoint_00000024", "checkpoint_00000036"]
    about = json.loads((evaluation_of(folder / "traditional_moe") / "evaluation.json").read_text())
    assert about["chosen"] == {"checkpoint": "checkpoint_00000024", "epoch": 4, "top1": 0.9}
    predictions = np.load(evaluation_of(folder / "traditional_moe") / "predictions.npz")
    assert not np.array_equal(predictions["chosen_argmax"], predictions["log_probs"].argmax(1)), "epochs differ"
    assert metrics["traditional_moe/top1_chosen"] == (predictions["chosen_argmax"] == predictions["labels"]).mean()
    assert metrics["traditional_moe/top1"] == (predictions["log_probs"].argmax(1) == predictions["labels"]).mean()

    # Nothing lowers the rate so early: epoch 4 of 6 is epoch 4 of 4.
    four = run(traditional(epochs=4), tmp_path / "four")
    assert four["traditional_moe/top1"] == metrics["traditional_moe/top1_chosen"]
    last_of_four = np.load(evaluation_of(tmp_path / "four" / "traditional_moe") / "predictions.npz")["log_probs"]
    assert np.array_equal(predictions["chosen_argmax"], last_of_four.argmax(1))


def test_without_a_validation_no_epoch_is_chosen(tmp_path: Path) -> None:
    data = sparse().data.model_dump() | {"val_fraction": 0}
    metrics = run(sparse(epochs=1, data=data), tmp_path / "run")
    assert "sparse_moe/top1" in metrics and "sparse_moe/top1_chosen" not in metrics
    assert "chosen on validation" not in (tmp_path / "run" / "results.md").read_text()


def test_a_changed_setting_trains_again(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    run(traditional(epochs=1), folder)
    anew = tmp_path / "anew"
    run(traditional(epochs=1), anew)
    assert max(step for step, _ in curve(folder, "traditional_moe")) == 6
    assert_equal(last_weights(folder, "traditional_moe"), last_weights(anew, "traditional_moe"))
    assert len(list(folder.glob("traditional_moe/trainings/*/checkpoints"))) == 2, "the other training stays"


@pytest.mark.parametrize(("job", "top_k", "again"), [(sparse, 1, True), (traditional, [2], False)])
def test_only_a_top_k_that_training_uses_trains_again(job: Any, top_k: Any, again: bool, tmp_path: Path) -> None:
    """For the sparse mixture it is the number of experts of a token; the other one is only evaluated with it."""
    run(job(epochs=1), tmp_path)
    assert len(list(tmp_path.glob("*/trainings/*"))) == 1
    run(job(epochs=1, top_k=top_k), tmp_path)
    assert (len(list(tmp_path.glob("*/trainings/*"))) == 2) is again


def test_a_run_that_another_began_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both found the folder empty, and the other one has finished before this one has opened its data."""
    folder, open_data = tmp_path / "run", run_module.open_data

    def slow_data(*given: Any) -> OpenedData:
        folder.mkdir()
        (folder / "job.yaml").write_text("the other's")
        return open_data(*given)

    monkeypatch.setattr(run_module, "open_data", slow_data)
    with pytest.raises(UserError, match="another moe-dist has begun a run here meanwhile"):
        run(traditional(epochs=1), folder)
    assert (folder / "job.yaml").read_text() == "the other's"


def test_a_diverged_loss_names_term_and_step_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    gate = traditional().method.gate.model_dump() | {"optimiser": {"kind": "sgd", "learning_rate": 1e30}}
    with pytest.raises(UserError, match=r"term `combined` is (nan|inf) at step \d+ of stage joint"):
        run(traditional(gate=gate, checkpoint={"every_steps": 1}), tmp_path / "run")
    for name, weights in last_weights(tmp_path / "run", "traditional_moe").items():
        assert name.startswith("random") or not np.isnan(weights).any(), name


def test_a_run_directory_of_another_job_is_refused(whole: Path) -> None:
    with pytest.raises(UserError, match="another job, small, not other"):
        require_same_run(whole, traditional(name="other"))


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        require_same_run(tmp_path, traditional())


def test_an_existing_run_is_gone_on_with_only_when_asked(whole: Path) -> None:
    with pytest.raises(UserError, match="already holds a run; add --resume"):
        choose_run_directory(traditional(), whole, resume=False)
    assert choose_run_directory(traditional(), whole, resume=True) == whole.resolve()


def test_resuming_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run is there"):
        choose_run_directory(traditional(), tmp_path / "misspelt", resume=True)


def test_a_refused_job_touches_neither_the_run_nor_latest(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "small" / "first"
    shutil.copytree(whole, folder)
    before = (folder / "job.yaml").read_text()
    with pytest.raises(UserError, match="not a multiple of workers = 7"):
        run(traditional(workers=7), folder)
    assert (folder / "job.yaml").read_text() == before and not (folder.parent / "latest").exists()
    run(traditional(), folder)
    assert (folder.parent / "latest").resolve() == folder.resolve()


def test_other_pixels_are_another_training(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    data = traditional().data.model_dump(mode="json") | {"mean": [0.4, 0.4, 0.4]}
    run(traditional(data=data), folder)
    assert curve(folder, "traditional_moe") != curve(whole, "traditional_moe")


def test_another_top_k_is_evaluated_and_not_trained_again(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    trained = (training_of(folder / "traditional_moe") / "training.json").read_text()
    metrics = run(traditional(top_k=[2]), folder)
    assert "traditional_moe/top1_k2" in metrics and "traditional_moe/top1_k1" not in metrics
    assert (training_of(folder / "traditional_moe") / "training.json").read_text() == trained


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of the small DFCP-MoE."""
    folder = tmp_path_factory.mktemp("clustered") / "run"
    run(dfcp(), folder)
    return folder


def test_dfcp_leaves_every_step_and_its_scores(clustered: Path) -> None:
    metrics = json.loads((clustered / "metrics.json").read_text())
    assert {"dfcp/purity", "dfcp/pseudo_label_accuracy", "dfcp/outliers", "dfcp/top1", "dfcp/map"} <= metrics.keys()
    done = {path.parents[1].name for path in clustered.glob("dfcp/steps/*/*/done.json")}
    labelling = {"split", "held_out", "siamese", "features", "first_stage", "second_stage", "pseudo_labels"}
    assert done == labelling | {"experts"}


def test_a_lost_step_is_done_again_and_the_ones_before_it_are_kept(clustered: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(clustered, folder)
    model = folder / "dfcp"
    kept = (step_of(model, "siamese") / "done.json").read_text()
    shutil.rmtree(step_of(model, "pseudo_labels"))
    run(dfcp(), folder)
    assert (step_of(model, "siamese") / "done.json").read_text() == kept
    for name in ("pseudo_labels", "experts"):
        with (
            np.load(step_of(model, name) / "arrays.npz") as again,
            np.load(step_of(clustered / "dfcp", name) / "arrays.npz") as once,
        ):
            assert all(np.array_equal(again[key], once[key]) for key in once)
    assert_equal(last_weights(folder, "dfcp"), last_weights(clustered, "dfcp"))


def test_hidden_labels_change_nothing_but_the_scores(clustered: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """With the labels of all untrusted images shuffled after the split, the training set is the same."""
    import moe_dist.methods.dfcp.steps as steps

    folder = tmp_path / "run"
    for name in ("split", "siamese", "features", "first_stage"):  # these cannot see them; start from the split
        shutil.copytree(clustered / "dfcp" / "steps" / name, folder / "dfcp" / "steps" / name)
    shutil.copy(clustered / "job.yaml", folder / "job.yaml")
    shutil.copy(clustered / "run.json", folder / "run.json")
    with np.load(step_of(clustered / "dfcp", "split") / "arrays.npz") as split:
        hidden = split["clustered"]
    real = steps._pseudo_labels

    def with_shuffled(workspace: Any) -> Any:
        labels = workspace.true_labels.copy()
        labels[hidden] = np.random.default_rng(0).permutation(labels[hidden])
        object.__setattr__(workspace, "true_labels", labels)
        return real(workspace)

    monkeypatch.setattr(steps, "_pseudo_labels", with_shuffled)
    run(dfcp(), folder)
    shuffled, once = (load_result(step_of(run / "dfcp", "pseudo_labels")).arrays for run in (folder, clustered))
    assert np.array_equal(shuffled["merged"], once["merged"])
    assert not np.array_equal(shuffled["confusion"], once["confusion"]), "the scores did see the shuffle"
    assert_equal(last_weights(folder, "dfcp"), last_weights(clustered, "dfcp"))
