"""Whole searches of jobs: experts and the managing network they are found for, a dense model, ICL; resume; refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from run_folders import step_of
from tune_jobs import GATE_SPACE, dense_search, dfcp_search, icl_search, mixture_search, run

from moe_dist.data.batch import DatasetInfo
from moe_dist.errors import UserError
from moe_dist.job import load_job
from moe_dist.methods.registry import METHODS, method_class
from moe_dist.models.branches import NetworkConfig
from moe_dist.tune.space import distributions, read_space

JOBS = Path(__file__).parents[2] / "jobs" / "dfcp"
INFO = DatasetInfo(10, tuple("0123456789"), 16, 120, (12,) * 10)
BOTH = {"of": ["experts", "method"], "method_space": GATE_SPACE}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of two experts, and of the managing network with them."""
    folder = tmp_path_factory.mktemp("both") / "run"
    run(dfcp_search(**BOTH), folder)
    return folder


def recipe(folder: Path) -> Path:
    return folder / "dfcp" / "search" / "best.yaml"


def finished(folder: Path, step: str) -> float:
    """When a step's result was written."""
    return json.loads((step_of(folder / "dfcp", step) / "done.json").read_text())["finished"]


def trials_of(found: dict, study: str) -> list[dict]:
    """Without the seconds, which differ from run to run."""
    return [trial | {"seconds": None} for trial in found["studies"][study]["trials"]]


def test_the_managing_network_is_searched_with_the_experts_that_were_found(both, tmp_path):
    """The step of experts alone was left as `experts: best.yaml` leaves it, and its study as that job's."""
    found = json.loads((both / "dfcp" / "search" / "results.json").read_text())
    assert set(found["studies"]) == {"0", "3", "method"}
    widths = [yaml.safe_load(recipe(both).read_text())[expert]["conv1"] for expert in (0, 3)]
    assert widths == [found["studies"][name]["configuration"]["conv1"] for name in ("0", "3")]
    trained = finished(both, "experts")
    experts = load_job(JOBS / "gtsrb.yaml", [f"methods.dfcp.experts={recipe(both)}"]).methods["dfcp"].experts
    job = dfcp_search({"experts": [expert.model_dump() for expert in experts]}, of=["method"], method_space=GATE_SPACE)
    folder = Path(shutil.copytree(both, tmp_path / "run"))
    after = run(job, folder)
    assert finished(folder, "experts") == trained
    assert trials_of(after, "method") == trials_of(found, "method")
    assert [trial["state"] for trial in after["studies"]["method"]["trials"]] == ["finished"] * 2
    assert "method.gate.dropout=0." in (both / "dfcp" / "search" / "best.set").read_text()


def test_a_search_goes_on_where_it_was_and_its_recipe_is_a_jobs(both, tmp_path):
    folder = Path(shutil.copytree(both, tmp_path / "run"))
    shutil.rmtree(folder / "dfcp" / "steps" / "experts")  # no trial of an expert needs it
    first = json.loads((both / "dfcp" / "search" / "results.json").read_text())
    best = load_job(JOBS / "gtsrb.yaml", [f"methods.dfcp.experts={recipe(folder)}"]).methods["dfcp"].experts
    assert len(best) == 10
    assert best[3].model_dump() == first["studies"]["3"]["configuration"]
    more = run(dfcp_search(experts=[3, 4], trials=3), folder)
    assert trials_of(more, "3")[:2] == trials_of(first, "3")
    assert {name: len(study["trials"]) for name, study in more["studies"].items()} == {"3": 3, "4": 3}
    assert not (folder / "dfcp" / "steps" / "experts").exists()
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"experts.jsonl: is the journal of another search.* differs in tune.space;"):
        run(dfcp_search(space={"conv1": [2, 3]}), folder)
    with pytest.raises(UserError, match=r"which differs in data and steps, method, tune.epochs;"):
        run(dfcp_search({"trusted": {"fraction": 0.3}}, epochs=3), folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files


def test_a_start_that_finds_every_trial_finished_leaves_the_record_s_top_alone(both, tmp_path):
    folder = Path(shutil.copytree(both, tmp_path / "run"))
    before = json.loads((folder / "run.json").read_text())
    run(dfcp_search(**BOTH), folder)
    after = json.loads((folder / "run.json").read_text())
    assert (len(before["starts"]), len(after["starts"])) == (1, 2)
    assert after["made_by_starts"] == before["made_by_starts"] == [0]


@pytest.mark.parametrize(("job", "epochs"), [(dense_search, 1), (icl_search, 2)])
def test_any_method_is_searched_as_a_whole_over_its_own_space(job, epochs, tmp_path):
    found = run(job(), tmp_path)
    study = found["studies"]["method"]
    own = method_class(job().method.name)(job().method, INFO).search_space()
    for trial in study["trials"]:
        assert trial["state"] == "finished"
        assert set(trial["values"]) == set(own)
        assert [epoch for epoch, *_ in trial["curve"]] == list(range(1, epochs + 1))
    scores = [trial["curve"][-1][1] for trial in study["trials"]]
    assert scores[study["best"]] == max(scores)
    (overrides,) = tmp_path.glob("*/search/best.set")
    values = [line for line in overrides.read_text().splitlines() if not line.startswith("#")]
    assert len(values) == len(own)


def test_every_methods_own_space_fits_its_configuration():
    spaces = 0
    for name in METHODS:
        method = method_class(name)(method_class(name).Config(), replace(INFO, image_size=64))
        space = read_space(method.search_space())
        assert set(distributions(space, method.config, name)) == set(space)
        spaces += bool(space)
    assert spaces == len(METHODS)


def test_a_methods_trial_that_falls_behind_at_a_rung_ends_there(tmp_path):
    """Rates of 0.003 and 10^-9, the better one first: after epoch 1 the other is not in the best half."""
    space = {"gate.optimiser.learning_rate": [0.003, 1e-9], "experts.learning_rate": [0.003, 1e-9]}
    job = mixture_search(rungs=[1], rung_factor=2, method_space=space, trials=4, batch=2, sampler="random")
    trials = run(job, tmp_path)["studies"]["method"]["trials"]
    assert trials[0]["state"] == "finished"
    assert {(trial["state"], len(trial["curve"])) for trial in trials} == {("finished", 3), ("stopped", 1)}


def test_a_methods_trial_that_diverges_or_runs_out_of_memory_is_recorded(tmp_path, monkeypatch):
    from moe_dist.tune import method_trials

    train = method_trials.train

    def out_of_memory(worker, task):
        if task.job.method.batch_size == 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        train(worker, task)

    monkeypatch.setattr(method_trials, "train", out_of_memory)
    space = {"batch_size": [16, 48], "gate.optimiser.learning_rate": [0.003, 1e30]}
    found = run(mixture_search(method_space=space, trials=5, batch=5, sampler="random"), tmp_path)
    trials = found["studies"]["method"]["trials"]
    for trial in trials:
        if trial["values"]["batch_size"] == 16:
            assert trial["reason"] == "out of memory: CUDA out of memory. Tried to allocate 20 GiB"
        elif trial["values"]["gate.optimiser.learning_rate"] == 1e30:
            assert trial["reason"].startswith("the loss diverged: term")
        else:
            assert trial["state"] == "finished"
    assert {trial["state"] for trial in trials} == {"finished", "failed"}


def test_a_search_of_which_every_trial_failed_says_why(tmp_path):
    space = {"gate.optimiser.learning_rate": [1e30, 2e30]}
    with pytest.raises(UserError, match="without a trial that was trained to its end; the first one said: the loss"):
        run(mixture_search(method_space=space), tmp_path)
    assert (tmp_path / "traditional_moe" / "search" / "results.json").exists()


def test_values_that_do_not_go_together_are_a_trial_that_failed(tmp_path):
    """Each value alone fits the job's network; a ResNet-50 of width 32 there is not."""
    job = icl_search(method_space={"network.kind": ["resnet50"], "network.width": [32]})
    job = job.model_copy(update={"method": job.method.model_copy(update={"network": NetworkConfig()})})
    with pytest.raises(UserError, match=r"the first one said: .*width is resnet32's alone"):
        run(job, tmp_path)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"space": {"conv3": [1]}}, "tune.space.conv3: there is no such parameter; choose among batch_size, conv1"),
        ({"experts": [10]}, "tune.experts: there is no expert 10; they are 0 to 9"),
        ({"rungs": [2]}, "tune.rungs: 2 is not below tune.epochs = 2"),
        ({"of": ["method"], "rungs": [1, 3]}, "tune.rungs: 3 is not below the method's epochs = 2"),
        ({"of": ["method"], "method_space": {"clusters.restarts": [1, 2]}}, "is a parameter of the step first_stage"),
        ({"of": ["method"], "method_space": {"gate.depth": [1, 2]}}, "tune.method_space.gate.depth: there is no such"),
    ],
)
def test_a_search_that_does_not_fit_its_method_is_refused_before_any_work(tmp_path, settings, sentence):
    with pytest.raises(UserError) as refused:
        run(dfcp_search(**settings), tmp_path)
    assert sentence in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_experts_that_are_not_trained_alone_have_no_search_each(tmp_path):
    with pytest.raises(UserError, match="the experts of traditional_moe are not trained alone"):
        run(mixture_search(of=["experts"]), tmp_path)


@pytest.mark.slow
def test_ray_finds_what_this_process_finds(tmp_path):
    """Also where a finished search is asked to go on, and has nothing left to do."""
    here, there = run(dfcp_search(**BOTH), tmp_path / "local"), run(dfcp_search(**BOTH), tmp_path / "ray", "ray")
    for name in here["studies"]:
        found, expected = trials_of(there, name), trials_of(here, name)
        assert [trial["values"] for trial in found] == [trial["values"] for trial in expected]
        assert there["studies"][name]["configuration"] == here["studies"][name]["configuration"]
    assert run(dfcp_search(**BOTH), tmp_path / "ray", "ray")["studies"] == there["studies"]
