"""A job of kind `tune`: the experts' search, then the method's with the experts that were found; and their results."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_dist.errors import UserError
from moe_dist.files import read_json
from moe_dist.launch.launcher import device_of, use_threads
from moe_dist.launch.phases import Drive, ModelPhases
from moe_dist.record.fingerprints import fingerprint
from moe_dist.record.restarts import restart
from moe_dist.settings.tune import METHOD, TuneConfig
from moe_dist.terminal import duration
from moe_dist.train.task import TrainingTask, open_method
from moe_dist.tune.backend import OpenBackend
from moe_dist.tune.budget import Budget
from moe_dist.tune.expert_trials import open_expert_backend, visible_training_set
from moe_dist.tune.journal import Journal
from moe_dist.tune.method_trials import open_method_backend
from moe_dist.tune.results import (
    EXPERTS_RECIPE,
    METHOD_RECIPE,
    RESULTS,
    StudyInfo,
    best_experts,
    write_experts_recipe,
    write_method_recipe,
    write_results,
)
from moe_dist.tune.search import Search, SearchedStudy, run_here
from moe_dist.tune.space import configured
from moe_dist.tune.studies import FOLDER, ExpertStudies, MethodStudy, Studies, tune_settings
from moe_dist.tune.trials import Round
from moe_dist.yaml_core import load_yaml


def tune_model(drive: Drive, model: str) -> None:
    """Run the job's searches and the steps that they need; the results are in <run>/<model>/search.

    Raises UserError where a search ends without a trial that was trained to its end.
    """
    searches = _Searches(drive, model)
    job, tuned = drive.job, ""
    settings = tune_settings(job)
    if "experts" in settings.of:
        studies = ExpertStudies(job, open_method(job, model, drive.data))
        searches.run(studies, open_expert_backend)
        experts = [
            config.model_dump(mode="json") for config, _ in best_experts(searches.found, studies.search.defaults())
        ]
        job = job.model_copy(update={"method": configured(job.models[model], {"experts": experts})})
        tuned = fingerprint(experts)[:12]
    if "method" in settings.of:
        searches.run(MethodStudy(job, open_method(job, model, drive.data), tuned), open_method_backend)


class _Searches:
    """The searches of a run, one after another, and what they found so far."""

    def __init__(self, drive: Drive, model: str) -> None:
        self._drive, self._model = drive, model
        self.found: dict[str, SearchedStudy] = {}
        self._infos: dict[str, StudyInfo] = {}
        self._seconds = 0.0
        self._scored_by = ""

    def run(self, studies: Studies, open_backend: OpenBackend) -> None:
        """Run the steps that the trials need, then the search, and write what was found so far."""
        drive = replace(self._drive, job=studies.job)
        phases = ModelPhases(drive, self._model, studies.method, studies.before(drive.data))
        phases.folder.point_at(phases.current())
        phases.run()
        drive.share()
        results = phases.results
        infos = studies.infos(drive.data.info.class_names, visible_training_set(studies.method, drive.data, results))
        folder = drive.run / self._model / FOLDER
        with closing(Journal(folder / studies.journal, studies.identity(drive.data))) as journal:
            search = _open_search(studies, infos, journal, drive.record.work_begins)
            task = phases.task_of(folder, studies.trial_stages)
            with drive.show.working(f"search of {studies.title} ({drive.launcher.name})"):
                drive.show.count_from(_progress(search, studies.settings)[0])
                with drive.show.watching(lambda: _progress(search, studies.settings)):
                    _run_search(search, open_backend, task, drive, studies.title)
        self.found |= search.studies
        self._infos |= infos
        self._seconds += search.elapsed
        self._write(studies, folder)
        _require_a_trained_trial(search)

    def _write(self, studies: Studies, folder: Path) -> None:
        """Write the recipe of the studies, and the results of all searches so far."""
        if isinstance(studies, ExpertStudies):
            self._scored_by = studies.search.scored_by
            names = studies.method.info.class_names
            write_experts_recipe(folder / EXPERTS_RECIPE, self.found, studies.search.defaults(), names)
            (folder / METHOD_RECIPE).unlink(missing_ok=True)  # it may belong to other experts
        else:
            write_method_recipe(folder / METHOD_RECIPE, self.found[METHOD], self._experts(studies, folder))
        start = self._drive.record.number
        if not self._drive.record.worked:  # an earlier start made the results
            start = (read_json(folder / RESULTS) or {}).get("start", 0)
        about = {
            "settings": studies.settings.model_dump(mode="json"),
            "seconds": self._seconds,
            "start": start,
            "scored_by": self._scored_by,
        }
        write_results(folder, self.found, self._infos, about)

    def _experts(self, studies: Studies, folder: Path) -> Any:
        """The experts with which the method was searched, as a job names them; None: its own.

        Of a run at a URL, whose files are no paths of every machine, they are written out.
        """
        if "experts" not in studies.settings.of:
            return None
        recipe = folder / EXPERTS_RECIPE
        return str(recipe.absolute()) if self._drive.mirror is None else load_yaml(recipe.read_text(encoding="utf-8"))


def _open_search(
    studies: Studies, infos: dict[str, StudyInfo], journal: Journal, work_begins: Callable[[], None]
) -> Search:
    settings = studies.settings
    budget = Budget(settings.trials, settings.seconds, settings.sharing, studies.batch)
    return Search(
        studies.create(infos),
        budget,
        journal,
        seed=studies.job.seed,
        rungs=settings.rungs,
        together=settings.together,
        work_begins=work_begins,
    )


def _run_search(search: Search, open_backend: OpenBackend, task: TrainingTask, drive: Drive, title: str) -> None:
    resources = task.job.resources

    def lost(work: Round, seconds: float) -> None:
        """Tell of a round whose worker died."""
        what = f"the worker of round {work.number} died"
        drive.show.notice(f"{what}, after {duration(seconds)} of the search of {title}; it is run again")
        drive.record.survived(restart(f"the search of {title}", "worker died", what, seconds_lost=seconds))

    if drive.launcher.name == "ray":
        from moe_dist.tune.ray_search import run_on_ray  # Ray need not be installed for another launcher

        run_on_ray(search, open_backend, task.pack(), resources, task.folder, lost)
        if search.lost:
            s = "s" if search.lost > 1 else ""
            drive.show.notice(
                f"{search.lost} trial{s} without a score: the worker died each time (out of memory, or killed); give "
                "tasks more memory (resources.cpus_per_task: fewer of them run on a machine at a time), and go on with "
                "--resume, which tries again"
            )
    else:
        use_threads(resources.cpus_per_task)
        run_here(search, open_backend(task.pack(), device_of(resources.gpus_per_task)).run)


def _progress(search: Search, settings: TuneConfig) -> tuple[float, float, str]:
    """How far the search is, of how much, and in words: in trials, or in seconds where trials have no limit."""
    if settings.trials is not None:
        total = settings.trials * len(search.studies)
        return search.finished, total, f"{search.finished}/{total} trials"
    assert settings.seconds is not None
    return min(search.elapsed, settings.seconds), settings.seconds, f"{search.finished} trials"


def _require_a_trained_trial(search: Search) -> None:
    """Raise UserError where no trial was trained to its end."""
    studies = [each.study for each in search.studies.values()]
    if any(study.best is not None for study in studies):
        return
    reasons = [outcome.reason for study in studies for outcome in study.outcomes if outcome.reason]
    said = f"; the first one said: {reasons[0]}" if reasons else ""
    raise UserError(f"the search ended without a trial that was trained to its end{said}")
