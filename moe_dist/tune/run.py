"""A job of kind `tune`: the experts' search, then the method's with the experts that were found; and their results."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from moe_dist.errors import UserError
from moe_dist.files import read_json
from moe_dist.launch.drive import Drive
from moe_dist.launch.launcher import device_of, use_threads
from moe_dist.places import Current, ModelFolder, cache_folder
from moe_dist.record.fingerprints import fingerprint
from moe_dist.settings.tune import METHOD, TuneConfig
from moe_dist.train.task import TrainingTask, open_method
from moe_dist.tune.backends import open_expert_backend, open_method_backend, visible_training_set
from moe_dist.tune.budget import Budget
from moe_dist.tune.journal import Journal
from moe_dist.tune.results import (
    EXPERTS_RECIPE,
    METHOD_RECIPE,
    RESULTS,
    StudyFacts,
    best_experts,
    write_experts_recipe,
    write_method_recipe,
    write_results,
)
from moe_dist.tune.runner import OpenBackend
from moe_dist.tune.search import Search, Searched, run_here
from moe_dist.tune.space import configured
from moe_dist.tune.studies import FOLDER, ExpertStudies, MethodStudy, Studies, tune_settings


def tune_model(drive: Drive, label: str) -> None:
    """Run what the job searches, with the steps that it needs; results are in <run>/<label>/search.

    Raises UserError where a search ends without one trial that was trained to its end.
    """
    tuning = _Tuning(drive, label)
    job, tuned = drive.job, ""
    settings = tune_settings(job)
    if "experts" in settings.of:
        studies = ExpertStudies(job, open_method(job, label, drive.data))
        tuning.search(studies, open_expert_backend)
        experts = [
            config.model_dump(mode="json") for config, _ in best_experts(tuning.found, studies.search.defaults())
        ]
        job = job.model_copy(update={"method": configured(job.models[label], {"experts": experts})})
        tuned = fingerprint(experts)[:12]
    if "method" in settings.of:
        tuning.search(MethodStudy(job, open_method(job, label, drive.data), tuned), open_method_backend)


class _Tuning:
    """The searches of a run, one after another, and what they found so far."""

    def __init__(self, drive: Drive, label: str) -> None:
        self._drive, self._label = drive, label
        self.found: dict[str, Searched] = {}
        self._facts: dict[str, StudyFacts] = {}
        self._seconds = 0.0
        self._scored_by = ""

    def search(self, studies: Studies, open_backend: OpenBackend) -> None:
        """Run the steps that the trials need, the search, and write what has been found."""
        drive = replace(self._drive, job=studies.job)
        results = drive.steps(self._label, studies.method, studies.last_step)
        ModelFolder(drive.run / self._label).point_at(Current(results.folders))
        facts = studies.facts(drive.data.info.class_names, visible_training_set(studies.method, drive.data, results))
        folder = drive.run / self._label / FOLDER
        with closing(Journal(folder / studies.journal, studies.identity(drive.data))) as journal:
            search = _open_search(studies, facts, journal, drive.record.work_begins)
            places = (drive.run, cache_folder(), drive.data.shards, folder, results.folders)
            task = TrainingTask(studies.job, self._label, *places, drive.record.number)
            with drive.show.working(f"search of {studies.title} ({drive.launcher.name})"):
                drive.show.count_from(_progress(search, studies.settings)[0])
                with drive.show.watching(lambda: _progress(search, studies.settings)):
                    _run_search(search, open_backend, task, drive.launcher.name)
        self.found |= search.searched
        self._facts |= facts
        self._seconds += search.elapsed
        self._save(studies, folder)
        _require_a_result(search)

    def _save(self, studies: Studies, folder: Path) -> None:
        if isinstance(studies, ExpertStudies):
            self._scored_by = studies.search.scored_by
            names = studies.method.info.class_names
            write_experts_recipe(folder / EXPERTS_RECIPE, self.found, studies.search.defaults(), names)
            (folder / METHOD_RECIPE).unlink(missing_ok=True)  # it may be of other experts
        else:
            experts = folder / EXPERTS_RECIPE if "experts" in studies.settings.of else None
            write_method_recipe(folder / METHOD_RECIPE, self.found[METHOD], experts)
        about = {
            "settings": studies.settings.model_dump(mode="json"),
            "seconds": self._seconds,
            "start": self._drive.record.number if self._drive.record.worked else _start_before(folder),
            "scored_by": self._scored_by,
        }
        write_results(folder, self.found, self._facts, about)


def _start_before(folder: Path) -> int:
    """The number of the start that made the results that are there."""
    return (read_json(folder / RESULTS) or {}).get("start", 0)


def _open_search(
    studies: Studies, facts: dict[str, StudyFacts], journal: Journal, work_begins: Callable[[], None]
) -> Search:
    settings = studies.settings
    budget = Budget(settings.trials, settings.seconds, settings.sharing, studies.batch)
    return Search(
        studies.searched(facts),
        budget,
        journal,
        seed=studies.job.seed,
        rungs=settings.rungs,
        together=settings.together,
        work_begins=work_begins,
    )


def _run_search(search: Search, open_backend: OpenBackend, task: TrainingTask, launcher: str) -> None:
    resources = task.job.resources
    if launcher == "ray":
        from moe_dist.tune.ray_search import run_on_ray  # Ray may be missing where it is not asked for

        run_on_ray(search, open_backend, task.pack(), resources, task.folder)
    else:
        use_threads(resources.cpus_per_task)
        run_here(search, open_backend(task.pack(), device_of(resources.gpus_per_task)).run)


def _progress(search: Search, settings: TuneConfig) -> tuple[float, float, str]:
    if settings.trials is not None:
        total = settings.trials * len(search.searched)
        return search.told, total, f"{search.told}/{total} trials"
    assert settings.seconds is not None
    return min(search.elapsed, settings.seconds), settings.seconds, f"{search.told} trials"


def _require_a_result(search: Search) -> None:
    """Raise UserError where not one trial was trained to its end."""
    studies = [each.study for each in search.searched.values()]
    if any(study.best is not None for study in studies):
        return
    reasons = [outcome.reason for study in studies for outcome in study.outcomes if outcome.reason]
    said = f"; the first one said: {reasons[0]}" if reasons else ""
    raise UserError(f"the search ended without a trial that was trained to its end{said}")
