"""A job of kind `tune`, from the steps before training to the search's results."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moe_dist.config import Job, MethodConfig
from moe_dist.data.opened import OpenedData, open_data
from moe_dist.errors import UserError
from moe_dist.methods.base import Method, TrainingSet
from moe_dist.methods.registry import method_class
from moe_dist.methods.search import ExpertSearch, SearchData
from moe_dist.train.launcher import Launcher, device_of, use_threads
from moe_dist.train.pipeline import run_steps
from moe_dist.train.results import Results
from moe_dist.train.show import Show
from moe_dist.train.task import TrainingTask, open_method
from moe_dist.tune.budget import Budget
from moe_dist.tune.config import METHOD, TuneConfig
from moe_dist.tune.journal import Journal
from moe_dist.tune.results import (
    EXPERTS_RECIPE,
    METHOD_RECIPE,
    StudyFacts,
    write_experts_recipe,
    write_method_recipe,
    write_results,
)
from moe_dist.tune.runner import Backend, ExpertBackend
from moe_dist.tune.search import Comparison, Search, Searched, run_here
from moe_dist.tune.space import Distributions, distributions, nearest, parameters, read_space
from moe_dist.tune.study import SamplerSettings, Study
from moe_dist.tune.trials import Outcome, Round
from moe_dist.tune.whole_method import MethodBackend, refuse_parameters_of_steps

FOLDER = "search"
"""Of a search's journal and results, in its method's folder."""


def refuse_search(job: Job, method: Method, validation_images: int) -> None:
    """Raise UserError where the section `tune` does not fit the method or the data; nothing is run for that."""
    settings = tune_settings(job)
    if not validation_images:
        raise UserError(
            "tune: trials are scored on the validation split, and there is none; set data.val_fraction above 0"
        )
    if "experts" in settings.of:
        search = _expert_search(method)
        unknown = [expert for expert in settings.experts or () if expert >= len(search.defaults())]
        if unknown:
            raise UserError(
                f"tune.experts: there is no expert {unknown[0]}; they are 0 to {len(search.defaults()) - 1}"
            )
        _expert_distributions(settings, search)
        late = [epoch for epoch in settings.rungs if epoch >= settings.epochs]
        if late:
            raise UserError(f"tune.rungs: {late[0]} is not below tune.epochs = {settings.epochs}")
    if "method" in settings.of:
        found = _method_distributions(settings, method)
        known = parameters(method.config)
        refuse_parameters_of_steps(
            job,
            method.config.name,
            lambda changed: method_class(method.config.name)(changed.models[method.config.name], method.info),
            {path: _other(found, path, known[path]) for path in found},
        )


def tune_settings(job: Job) -> TuneConfig:
    """The section `tune` of a job of that kind."""
    assert job.tune is not None
    return job.tune


def tune_model(job: Job, label: str, run: Path, data: OpenedData, launcher: Launcher, show: Show, cache: Path) -> None:
    """Run the steps that the trials need, the search, and write its results into <run>/<label>/search."""
    settings, method, folder = tune_settings(job), open_method(job, label, data), run / label
    last = None if "method" in settings.of else _expert_search(method).last_step
    results, inputs = run_steps(method, job, data, folder / "steps", launcher.run_tasks, show, last)
    task = TrainingTask(job, label, run, cache, inputs)
    facts = _facts(settings, method, data, results)
    journal = Journal(folder / FOLDER / "journal.jsonl", _identity(job, label, inputs))
    search = _open_search(job, method, facts, journal)
    total = None if settings.trials is None else settings.trials * len(facts)
    title = f"search of {len(facts)} stud{'y' if len(facts) == 1 else 'ies'} ({launcher.name})"
    with show.working(title), show.watching(lambda: _progress(search, settings, total)):
        _run(search, task, launcher.name)
    journal.close()
    _save(folder / FOLDER, search, settings, method, facts)
    _require_a_result(search)


def _run(search: Search, task: TrainingTask, launcher: str) -> None:
    resources = task.job.resources
    if launcher == "ray":
        from moe_dist.tune.ray_search import run_on_ray  # Ray may be missing where it is not asked for

        run_on_ray(search, open_backend, task.pack(), resources, task.folder / FOLDER)
    else:
        use_threads(resources.cpus_per_task)
        run_here(search, open_backend(task.pack(), device_of(resources.gpus_per_task)).run)


def _progress(search: Search, settings: TuneConfig, total: int | None) -> tuple[float, float, str]:
    if total is not None:
        return search.told, total, f"{search.told}/{total} trials"
    assert settings.seconds is not None
    return min(search.elapsed, settings.seconds), settings.seconds, f"{search.told} trials"


def _open_search(job: Job, method: Method, facts: dict[str, StudyFacts], journal: Journal) -> Search:
    settings = tune_settings(job)
    sampler = SamplerSettings(settings.sampler, settings.random_trials, job.seed)
    seeds = tuple(job.seed + 1 + number for number in range(settings.compare_seeds))
    searched = []
    for name, about in facts.items():
        if name == METHOD:
            found = _method_distributions(settings, method)
            starts = [_fitted(found, parameters(about.base))] if settings.starts == "trend" else []
            searched.append(Searched(Study(name, found, sampler, starts)))
        else:
            search = _expert_search(method)
            found = _expert_distributions(settings, search)
            starts = _starts(settings, search, found, about)
            compared = Comparison({path: parameters(about.base)[path] for path in found}, seeds)
            searched.append(Searched(Study(name, found, sampler, starts), compared))
    budget = Budget(settings.trials, settings.seconds, settings.sharing, settings.batch)
    return Search(
        searched, budget, journal, seed=job.seed, rungs=settings.rungs, together=settings.together, apart=(METHOD,)
    )


def _starts(
    settings: TuneConfig, search: ExpertSearch, found: Distributions, about: StudyFacts
) -> list[dict[str, Any]]:
    """The job's own configuration and the one that the number of samples suggests, as the space allows."""
    if settings.starts == "none":
        return []
    own = _fitted(found, parameters(about.base))
    suggested = _fitted(found, parameters(about.base) | dict(search.suggestion(about.samples)))
    return [own] if suggested == own else [own, suggested]


def _fitted(found: Distributions, values: dict[str, Any]) -> dict[str, Any]:
    return {path: nearest(distribution, values[path]) for path, distribution in found.items()}


def _expert_search(method: Method) -> ExpertSearch:
    search = method.expert_search()
    if search is None:
        raise UserError(
            f"tune.of: the experts of {method.config.name} are not trained alone, so there is no search of each; "
            "set tune.of to [method], or choose a method that has one (dfcp)"
        )
    return search


def _expert_distributions(settings: TuneConfig, search: ExpertSearch) -> Distributions:
    return distributions(settings.space or read_space(search.space), search.defaults()[0], "tune.space")


def _method_distributions(settings: TuneConfig, method: Method) -> Distributions:
    space = settings.method_space or read_space(method.search_space())
    if not space:
        raise UserError(f"tune.method_space: {method.config.name} has no search space of its own; give one")
    return distributions(space, method.config, "tune.method_space")


def _other(found: Distributions, path: str, value: Any) -> Any:
    """A value that a parameter may take beside the job's own."""
    distribution: Any = found[path]
    ends = getattr(distribution, "choices", None) or (distribution.low, distribution.high)
    return next((end for end in ends if end != value), value)


def _facts(settings: TuneConfig, method: Method, data: OpenedData, results: Results) -> dict[str, StudyFacts]:
    """What is searched, by the study's name."""
    facts: dict[str, StudyFacts] = {}
    training_set = _training_set(method, data, results)
    if "experts" in settings.of:
        defaults = _expert_search(method).defaults()
        samples = np.bincount(training_set.labels, minlength=len(defaults))
        for expert in settings.experts or range(len(defaults)):
            facts[str(expert)] = StudyFacts(data.info.class_names[expert], int(samples[expert]), defaults[expert])
    if "method" in settings.of:
        config: MethodConfig = method.config
        facts[METHOD] = StudyFacts(config.name, len(training_set.samples), config)
    return facts


def _training_set(method: Method, data: OpenedData, results: Results) -> TrainingSet:
    return method.training_set(results, method.visible_labels(results, data.train.labels), data.train_samples)


def _identity(job: Job, label: str, inputs: str) -> dict[str, Any]:
    """What makes it this search and no other. Budget, studies, backend and resources may change from run to run."""
    free = {"experts", "of", "trials", "seconds", "sharing", "together", "backend", "compare_seeds"}
    settings = tune_settings(job).model_dump(mode="json", exclude=free)
    method = job.models[label].model_dump(mode="json", exclude={"top_k"})
    return {"job": job.name, "seed": job.seed, "data and steps": inputs, "method": method} | {
        f"tune.{name}": value for name, value in settings.items()
    }


def _save(folder: Path, search: Search, settings: TuneConfig, method: Method, facts: dict[str, StudyFacts]) -> None:
    about: dict[str, Any] = {"settings": settings.model_dump(mode="json")}
    if "experts" in settings.of:
        experts = _expert_search(method)
        about["scored_by"] = experts.scored_by
        names: Sequence[str] = method.info.class_names
        write_experts_recipe(folder / EXPERTS_RECIPE, search, experts.defaults(), names)
    if METHOD in search.searched:
        write_method_recipe(folder / METHOD_RECIPE, search.searched[METHOD])
    write_results(folder, search, facts, about)


def _require_a_result(search: Search) -> None:
    """Raise UserError where not one trial was trained to its end."""
    studies = [each.study for each in search.searched.values()]
    if any(study.best is not None for study in studies):
        return
    reasons = [outcome.reason for study in studies for outcome in study.outcomes if outcome.reason]
    said = f"; the first one said: {reasons[0]}" if reasons else ""
    raise UserError(f"the search ended without a trial that was trained to its end{said}")


def open_backend(packed: dict[str, Any], device: torch.device) -> Backend:
    """The backend of a packed TrainingTask, in whatever process runs its rounds."""
    return JobBackend(TrainingTask.unpack(packed), device)


class JobBackend:
    """Runs rounds of experts' studies and of the method's; data and results of the steps are opened once."""

    def __init__(self, task: TrainingTask, device: torch.device) -> None:
        self._task, self._device = task, device
        self._settings = tune_settings(task.job)

    def run(self, work: Round) -> list[list[Outcome]]:
        """See Backend. A round is of experts, or of the method alone."""
        return (self._method if work.batches[0].study == METHOD else self._experts).run(work)

    @cached_property
    def _method(self) -> MethodBackend:
        return MethodBackend(self._task, self._settings.rung_factor, self._device)

    @cached_property
    def _experts(self) -> ExpertBackend:
        task = self._task
        data = open_data(task.job.data, task.job.seed, task.cache)
        data.bad_samples.write_to(task.bad_samples)
        method = open_method(task.job, task.label, data)
        material = SearchData(
            config=data.config,
            train=data.train.images,
            training_set=_training_set(method, data, Results(task.folder / "steps")),
            val=data.val.images,
            val_samples=data.val_samples,
            val_labels=data.val.labels[data.val_samples],
        )
        return ExpertBackend(_expert_search(method), material, self._settings, self._device)
