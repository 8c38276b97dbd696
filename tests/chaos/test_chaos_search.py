"""Workers of a search that die: their rounds are run again, and those that die each time are left to the next run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tune"))

from formula_studies import FormulaBackend, search, suggestions
from small_jobs import quiet, traditional

from moe_dist.launch.choose import open_launcher
from moe_dist.settings.resources import ResourceConfig
from moe_dist.tune.ray_search import run_on_ray
from moe_dist.tune.search import run_here
from moe_dist.tune.trials import LOST, Round

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with open_launcher("ray", traditional(), tmp_path_factory.mktemp("ray"), quiet()):
        yield


def dying(folder: Path, trial: int, times: int) -> Callable[[Any, Any], Any]:
    """How a worker opens a backend that is killed whenever it begins `trial` of study 0, `times` times.

    Nested, so that it travels to Ray's workers whole.
    """
    tune = str(Path(__file__).parents[1] / "tune")

    def open_backend(packed: Any, device: Any) -> Any:
        sys.path.insert(0, tune)
        from formula_studies import FormulaBackend

        class Backend(FormulaBackend):
            def run(self, work: Round) -> Any:
                deaths = folder / "deaths"
                asked = [(batch.study, each.number) for batch in work.batches for each in batch.trials]
                before = len(deaths.read_text()) if deaths.exists() else 0
                if ("0", trial) in asked and before < times:
                    with deaths.open("a") as file:
                        file.write("x")
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().run(work)

        return Backend()

    return open_backend


def test_a_round_whose_worker_died_is_run_again(ray: None, tmp_path: Path) -> None:
    found, lost = search(tmp_path, [0, 1], trials=4, batch=2), []
    run_on_ray(found, dying(tmp_path, 2, 1), None, ResourceConfig(), tmp_path, lambda *what: lost.append(what))
    assert (found.finished, found.lost) == (8, 0)
    assert {outcome.state for each in found.studies.values() for outcome in each.study.outcomes} <= {
        "finished",
        "stopped",
    }
    assert len(lost) == 1 and [trial.number for trial in lost[0][0].batches[0].trials] == [2, 3]
    whole = search(tmp_path / "whole", [0, 1], trials=4, batch=2)
    run_here(whole, FormulaBackend().run)
    assert suggestions(found) == suggestions(whole), "as if nothing had been"


def test_a_round_that_kills_each_worker_is_left_to_the_next_run(ray: None, tmp_path: Path) -> None:
    settings = {"trials": 6, "batch": 1, "rungs": ()}
    found = search(tmp_path, [0, 1], **settings)
    run_on_ray(found, dying(tmp_path, 2, 3), None, ResourceConfig(), tmp_path)
    assert (found.finished, found.lost) == (11, 1), "tried three times, as a task is; the others have their scores"
    assert found.studies["0"].study.outcomes[2].reason == LOST
    again = search(tmp_path, [0, 1], **settings)
    run_on_ray(again, dying(tmp_path, 2, 3), None, ResourceConfig(), tmp_path)
    assert (again.finished, again.lost) == (12, 0)
