"""Runs of an installed package's methods with all kinds of phases: whole, killed and resumed, over ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_jobs import made_up
from run_folders import checkpoints_of, evaluation_of, log_of, step_of, training_of
from safetensors.numpy import load_file
from small_jobs import dfcp, quiet

import moe_dist.train.loop as loop
from moe_dist.engine.checkpoint import read_state
from moe_dist.job import Job, parse_job
from moe_dist.metrics.clustering import clustering_metrics
from moe_dist.places import ModelFolder
from moe_dist.report.build import build_report
from moe_dist.run.run import run_job
from moe_dist.train.checkpoints import newest_checkpoint


@pytest.fixture(autouse=True)
def without_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out reports, which take longer than these runs."""
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)


class Killed(BaseException):
    """Raised in place of the end of the process."""


def run(job: Job, folder: Path) -> Path:
    run_job(job, folder, "local", quiet())
    return folder / job.method.name


def tensors(model: Path) -> dict[str, np.ndarray]:
    """Every tensor of the newest checkpoints of all of the model's trainings."""
    found = {}
    for name, training in {"": training_of(model), **ModelFolder(model).current().earlier}.items():
        newest = newest_checkpoint(training / "checkpoints")
        assert newest is not None
        for path in newest.glob("*.safetensors"):
            found |= {f"{name}/{path.name}/{key}": tensor for key, tensor in load_file(path).items()}
    return found


def assert_same(left: Path, right: Path) -> None:
    ours, theirs = tensors(left), tensors(right)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert np.array_equal(ours[name], theirs[name], equal_nan=True), name


def losses(model: Path) -> list[float]:
    return [line["loss"] for line in log_of(model) if line["kind"] == "step"]


CLUSTERS = ("made_up_clusters", {"steps": 16, "pretrain_epochs": 1})
GATES = ("made_up_gates", {"module_epochs": 2, "all_epochs": 1})


@pytest.fixture(scope="module", params=[CLUSTERS, GATES], ids=["clusters", "gates"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A job, and the model's folder of an uninterrupted run of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moe_dist.report.build.build_report", lambda path: path)
        return request.param, run(made_up(*request.param), tmp_path_factory.mktemp("whole") / "run")


def test_killed_after_every_step_it_ends_bit_identical(
    whole: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start takes one step more than the last one, and dies before the next step."""
    asked, unbroken = whole
    real, done = loop.train_step, [0]

    def one_step(method: Any, session: Any, batch: Any, progress: Any) -> Any:
        if done[0]:
            raise Killed
        done[0] += 1
        return real(method, session, batch, progress)

    monkeypatch.setattr(loop, "train_step", one_step)
    job = made_up(*asked, checkpoint={"every_steps": 1})
    for _ in range(200):
        done[0] = 0
        try:
            model = run(job, tmp_path)
            break
        except Killed:
            continue
    assert_same(model, unbroken)
    assert losses(model) == losses(unbroken)


DEATHS = [
    *((1, place) for place in ("prepare:1", "refresh:1", "refresh:3", "cluster:9")),
    *((2, place) for place in ("prepare:1", "refresh:3")),
    *(pytest.param(2, f"refresh:{number}", marks=pytest.mark.slow) for number in (1, 2)),
    *(pytest.param(2, f"cluster:{number}", marks=pytest.mark.slow) for number in range(1, 17)),
]
"""How many workers, and in which call of what they die."""


@pytest.mark.chaos
@pytest.mark.parametrize(("workers", "place"), DEATHS)
def test_a_process_that_dies_inside_prepare_or_refresh_costs_nothing(
    workers: int, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process, or both ranks, are killed; after a resume the run ends like an uninterrupted one."""
    job = made_up(*CLUSTERS, workers=workers, parallel={"micro_batches": 2}, checkpoint={"every_steps": 4})
    unbroken = run(job, tmp_path / "unbroken")
    monkeypatch.setenv("MADE_UP_DIE", place)
    assert die(job, tmp_path / "broken") != 0
    monkeypatch.delenv("MADE_UP_DIE")
    model = run(job, tmp_path / "broken")
    assert_same(model, unbroken)
    assert losses(model) == losses(unbroken)


def die(job: Job, folder: Path) -> int:
    """The exit code of a process that runs the job."""
    import multiprocessing

    process = multiprocessing.get_context("spawn").Process(
        target=run_quietly, args=(job.model_dump_json(), str(folder))
    )
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def run_quietly(job: str, folder: str) -> None:
    """Run a job in a fresh process."""
    from moe_dist.job import parse_job

    run_job(parse_job(json.loads(job), "made-up"), Path(folder), "local", quiet())


@pytest.mark.parametrize("asked", [CLUSTERS, GATES], ids=["clusters", "gates"])
def test_two_workers_give_the_numbers_of_one(asked: Any, tmp_path: Path) -> None:
    """Neither has batch normalisation or dropout: with two micro-batches the very same parts are added."""
    one = run(made_up(*asked, parallel={"micro_batches": 2}), tmp_path / "one")
    two = run(made_up(*asked, workers=2, parallel={"micro_batches": 2}), tmp_path / "two")
    assert losses(one) == losses(two)
    ours, theirs = tensors(one), tensors(two)
    assert ours.keys() <= theirs.keys()  # a second rank has a random state of its own
    for name in ours:
        assert "random" in name or np.array_equal(ours[name], theirs[name]), name


def test_the_log_has_terms_logged_values_and_refreshes(whole: tuple[Any, Path]) -> None:
    (name, _), model = whole
    lines = log_of(model)
    steps = [line for line in lines if line["kind"] == "step"]
    assert all("entropy" in line and line["loss"] == pytest.approx(sum_of_terms(line)) for line in steps)
    refreshes = [(line["step"], line["changed"]) for line in lines if line["kind"] == "refresh"]
    if name == "made_up_clusters":
        assert [step for step, _ in refreshes] == [0, 7, 14] and refreshes[0][1] == 1
        assert all(0 <= line["val/accuracy"] <= 1 for line in lines if line["kind"] == "epoch")
    else:
        assert refreshes == []


def sum_of_terms(line: dict[str, Any]) -> float:
    return sum(value for name, value in line.items() if name.startswith("loss/"))


def test_a_refresh_can_end_the_stage(tmp_path: Path) -> None:
    """All labels may change (tolerance 1.1), so the first refresh ends the stage, before any step."""
    model = run(made_up("made_up_clusters", {"steps": 30, "pretrain_epochs": 1, "tolerance": 1.1}), tmp_path)
    about = json.loads((training_of(model) / "training.json").read_text())
    assert (about["step"], about["over"]) == (0, "labels stand still")


def test_a_stage_without_gain_is_stopped_and_the_next_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses 3, 2, 2, 2: two epochs without a lower one end the first stage after four of its six."""
    seen: list[float] = []

    def validate(session: Any, ranks: int) -> dict[str, float]:
        seen.append(float(3 - min(len(seen), 1)))
        return {"loss": seen[-1], "top1": 0.5}

    monkeypatch.setattr(loop, "validate", validate)
    model = run(made_up("made_up_gates", {"module_epochs": 6, "all_epochs": 2}), tmp_path)
    epochs = [(line["stage"], line["epoch"]) for line in log_of(model) if line["kind"] == "epoch"]
    assert epochs == [("modules", 0), ("modules", 1), ("modules", 2), ("modules", 3), ("all", 0), ("all", 1)]
    assert seen[:4] == [3, 2, 2, 2]


def test_several_gates_are_kept_by_name(whole: tuple[Any, Path]) -> None:
    (name, _), model = whole
    with np.load(evaluation_of(model) / "predictions.npz") as arrays:
        gates = {key for key in arrays if key.startswith("gate")}
        assert gates == ({"gate.early", "gate.late"} if name == "made_up_gates" else set())
        assert all(np.allclose(arrays[gate].sum(1), 1, atol=1e-5) for gate in gates)


def test_pretraining_is_kept_where_the_clustering_changes(tmp_path: Path) -> None:
    """Its declared settings include neither those of the clustering nor the validation images."""
    model = run(made_up(*CLUSTERS), tmp_path)
    (pretrained,) = ModelFolder(model).current().earlier.values()
    before = (pretrained / "training.json").read_text()
    longer = (CLUSTERS[0], {**CLUSTERS[1], "steps": 20})
    run(made_up(*longer), tmp_path)
    assert ModelFolder(model).current().earlier["pretrain"] == pretrained
    assert (pretrained / "training.json").read_text() == before
    assert len(list(model.glob("trainings/*"))) == 3
    assert step_of(model, "codes").is_dir()


def test_a_checkpoint_names_its_phase(whole: tuple[Any, Path]) -> None:
    (name, _), model = whole
    newest = newest_checkpoint(checkpoints_of(model))
    assert newest is not None
    state = read_state(newest)
    assert state["stage"] == ("cluster" if name == "made_up_clusters" else "all") and state["over"] == "its length"


def test_the_report_shows_what_the_method_brings(whole: tuple[Any, Path]) -> None:
    (name, _), model = whole
    page = build_report(model.parent).read_text()
    metrics = json.loads((model.parent / "metrics.json").read_text())
    results = (model.parent / "results.md").read_text()
    figures = {path.stem for path in (model.parent / "figures").iterdir()}
    assert 'class="status"' not in page
    if name == "made_up_clusters":
        with np.load(evaluation_of(model) / "predictions.npz") as arrays:
            expected = clustering_metrics(arrays["log_probs"].argmax(1), arrays["labels"])
        assert {key: metrics[f"{name}/{key}"] for key in expected} == expected
        assert metrics[f"{name}/spread"] > 0 and f"{name}/top1" not in metrics
        assert "Clustering accuracy (ACC)" in results and "Spread of the codes" in results and "centres" in results
        assert figures >= {f"{start}_{name}" for start in ("changed", "clusters", "training")}
        assert f"training_{name}_pretrain" in figures and "precision_by_class" not in figures
        assert "clustering accuracy on test" in page
    else:
        assert figures >= {f"gate_load_{name}_{gate}" for gate in ("early", "late")} | {f"confusion_{name}"}


def on_a_trunk(**changes: Any) -> Job:
    """`dfcp` whose Siamese network has a trunk of timm's, and whose joint stage dispatches conditionally."""
    job = dfcp(**changes).model_dump(mode="json")
    siamese = {"backbone": "timm/test_resnet", "weights": None, "image_size": 32, "epochs": 2, "dimensions": 16}
    job["method"]["pseudo_labels"] |= {"siamese": siamese}
    job["method"] |= {"trusted": {"fraction": 0.9, "by": "image"}, "clusters": {"count": 60, "restarts": 1}}
    job["method"]["joint"] |= {"epochs": 1, "dispatch": "conditional"}
    return parse_job(job, "on_a_trunk.yaml")


@pytest.mark.parametrize(
    ("job_of", "step"),
    [
        *(pytest.param(dfcp, step, marks=pytest.mark.chaos) for step in (1, 4, 5, 9)),
        pytest.param(on_a_trunk, 3, marks=pytest.mark.slow),
    ],
    ids=["1", "4", "5", "9", "on a trunk"],
)
def test_the_siamese_stage_killed_and_gone_on_with_is_bit_identical(
    job_of: Any, step: int, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(checkpoint={"every_steps": 2})
    unbroken = tmp_path_factory.getbasetemp() / f"unbroken-{job_of.__name__}"
    if not unbroken.exists():
        run(job_of(), unbroken)
    real = loop.train_step

    def step_or_die(method: Any, session: Any, batch: Any, progress: Any) -> Any:
        if progress.stage == "siamese_labels" and progress.step == step:
            raise Killed
        return real(method, session, batch, progress)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "train_step", step_or_die)
        run(job, tmp_path)
    assert_same(run(job, tmp_path), unbroken / "dfcp")
