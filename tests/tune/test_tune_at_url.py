"""A search at a URL is gone on with on another machine, and its recipes are of use on any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_jobs import dfcp
from tune_jobs import GATE_SPACE, dfcp_search, mixture_search, quiet

from moe_dist.job import Job, dump_job, load_job
from moe_dist.record.run_place import run_place
from moe_dist.run.run import choose_run_place, run_job
from moe_dist.yaml_core import load_yaml

pytestmark = pytest.mark.slow


def run(
    job: Job, url: str, node: Path, monkeypatch: pytest.MonkeyPatch, *, resume: bool = False, on: str = "local"
) -> None:
    """Run the search at a URL on a machine that keeps its files in `node`."""
    monkeypatch.setenv("MOE_DIST_NODE_CACHE", str(node))
    place = choose_run_place(job, run_place("--out")(url), resume)
    with place.kept(quiet()) as mirror:
        run_job(job, place.folder, on, quiet(), mirror=mirror)


def test_a_search_at_a_url_is_gone_on_with_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a search in a folder: the trials that have an outcome are not run again, and no more is different."""
    store = tmp_path / "store/x"
    run(dfcp_search(), f"file://{store}", tmp_path / "one", monkeypatch)
    first = json.loads((store / "dfcp/search/results.json").read_text())
    more = dfcp_search(trials=4)
    run(more, f"file://{store}", tmp_path / "other", monkeypatch, resume=True)
    run_job(more, tmp_path / "whole", "local", quiet())
    found = json.loads((store / "dfcp/search/results.json").read_text())
    whole = json.loads((tmp_path / "whole/dfcp/search/results.json").read_text())
    for name, study in found["studies"].items():
        assert study["trials"][:2] == first["studies"][name]["trials"]
        assert [trial["values"] for trial in study["trials"]] == [
            trial["values"] for trial in whole["studies"][name]["trials"]
        ]
    assert (store / "dfcp/search/best.yaml").read_text() == (tmp_path / "whole/dfcp/search/best.yaml").read_text()


def test_recipes_of_a_search_at_a_url_are_of_use_on_any_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts that were found are written out, because their file is no path of another machine."""
    store = tmp_path / "store/x"
    job = dfcp_search(of=["experts", "method"], method_space=GATE_SPACE)
    run(job, f"file://{store}", tmp_path / "one", monkeypatch)
    recipe = (store / "dfcp/search/best.set").read_text()
    assert "method.experts=[{" in recipe and str(tmp_path) not in recipe
    (tmp_path / "best.set").write_text(recipe)
    (tmp_path / "job.yaml").write_text(dump_job(dfcp(name="again")))
    found = load_job(tmp_path / "job.yaml", [f"@{tmp_path / 'best.set'}"]).models["dfcp"]
    experts = load_yaml((store / "dfcp/search/best.yaml").read_text())
    assert [expert.model_dump(mode="json") for expert in found.experts] == experts  # type: ignore[attr-defined]


def test_trials_on_ray_are_kept_at_the_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store/x"
    run(mixture_search(), f"file://{store}", tmp_path / "one", monkeypatch, on="ray")
    assert len(list(store.glob("traditional_moe/search/trials/*/metrics.jsonl"))) == 2
    assert (store / "traditional_moe/search/best.set").is_file()
