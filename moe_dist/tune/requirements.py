"""What a search needs before any work: a section `tune` that fits its method, its data and its earlier runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_dist.data.opened.opened import OpenedData
from moe_dist.errors import UserError
from moe_dist.job import Job
from moe_dist.methods.base import Method
from moe_dist.methods.registry import method_class
from moe_dist.record.fingerprints import stages_of_last_training
from moe_dist.settings.tune import Range
from moe_dist.tune.journal import require_same_search
from moe_dist.tune.space import configured, parameters
from moe_dist.tune.studies import FOLDER, ExpertStudies, MethodStudy, tune_settings


def require_searchable(job: Job, method: Method, data: OpenedData, folder: Path) -> None:
    """Raise UserError where the job's search cannot be run; nothing is run or written.

    folder: the method's in the run directory, where an earlier run of the search may have left its journal.
    """
    settings = tune_settings(job)
    if not len(data.val_samples):
        raise UserError(
            "tune: trials are scored on the validation split, and there is none; set data.val_fraction above 0"
        )
    if "experts" in settings.of:
        studies = ExpertStudies(job, method)
        experts = len(studies.search.defaults())
        unknown = [expert for expert in settings.experts or () if expert >= experts]
        if unknown:
            raise UserError(f"tune.experts: there is no expert {unknown[0]}; they are 0 to {experts - 1}")
        studies.distributions()
        _require_rungs_before_the_end(settings.rungs, settings.epochs, "tune.epochs")
        require_same_search(folder / FOLDER / studies.journal, studies.identity(data))
    if "method" in settings.of:
        study = MethodStudy(job, method)
        study.distributions()
        _require_no_parameter_of_a_step(job, method, study)
        epochs = [stage.epochs for stage in stages_of_last_training(method)]
        if None not in epochs:  # the length of others is not known in epochs
            _require_rungs_before_the_end(settings.rungs, sum(filter(None, epochs)), "the method's epochs")
        if "experts" not in settings.of:  # otherwise its journal is named after experts that are still to be found
            require_same_search(folder / FOLDER / study.journal, study.identity(data))


def _require_rungs_before_the_end(rungs: tuple[int, ...], epochs: int, name: str) -> None:
    """Raise UserError where a rung is not before the last of `epochs`, which are called `name`."""
    late = [epoch for epoch in rungs if epoch >= epochs]
    if late:
        raise UserError(f"tune.rungs: {late[0]} is not below {name} = {epochs}; leave it out")


def _require_no_parameter_of_a_step(job: Job, method: Method, study: MethodStudy) -> None:
    """Raise UserError where another value of a searched parameter changes a step, which is run once for all trials."""
    model, own = method.config.name, parameters(study.method.config)
    settings = _settings_before_trials(method)
    for path, values in study.space.items():
        candidates = (values.low, values.high) if isinstance(values, Range) else values
        other = next((value for value in candidates if value != own[path]), own[path])
        changed = method_class(model)(configured(job.models[model], {path: other}), method.info)
        after = _settings_before_trials(changed)
        different = [name for name in settings if settings[name] != after[name]]
        if different:
            raise UserError(
                f"tune.method_space.{path}: is a parameter of the step {different[0]}, which is run once for all "
                "trials; leave it out"
            )


def _settings_before_trials(method: Method) -> dict[str, Mapping[str, Any]]:
    """The settings of the phases that are run once for all trials, by their names."""
    trial = {stage.name for stage in stages_of_last_training(method)}
    before = [stage for stage in method.stages() if stage.name not in trial]
    settings = {stage.name: dict(stage.settings or {}) for stage in before}
    return settings | {step.name: dict(step.settings) for step in method.steps()}
