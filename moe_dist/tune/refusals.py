"""What a search refuses before any work: a section `tune` that does not fit its method, its data, or its own past."""

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
from moe_dist.tune.journal import refuse_other_search
from moe_dist.tune.space import configured, parameters
from moe_dist.tune.studies import FOLDER, ExpertStudies, MethodStudy, tune_settings


def refuse_search(job: Job, method: Method, data: OpenedData, folder: Path) -> None:
    """Raise UserError where the section `tune` does not fit; nothing is run or written for that.

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
        _refuse_late_rungs(settings.rungs, settings.epochs, "tune.epochs")
        refuse_other_search(folder / FOLDER / studies.journal, studies.identity(data))
    if "method" in settings.of:
        study = MethodStudy(job, method)
        study.distributions()
        _refuse_parameters_of_steps(job, method, study)
        epochs = [stage.epochs for stage in stages_of_last_training(method)]
        if None not in epochs:  # the length of others is not known in epochs
            _refuse_late_rungs(settings.rungs, sum(filter(None, epochs)), "the method's epochs")
        if "experts" not in settings.of:  # with them, it is the search of experts that are still to be found
            refuse_other_search(folder / FOLDER / study.journal, study.identity(data))


def _refuse_late_rungs(rungs: tuple[int, ...], epochs: int, whose: str) -> None:
    late = [epoch for epoch in rungs if epoch >= epochs]
    if late:
        raise UserError(f"tune.rungs: {late[0]} is not below {whose} = {epochs}; leave it out")


def _refuse_parameters_of_steps(job: Job, method: Method, study: MethodStudy) -> None:
    """Raise UserError where a searched parameter is one of a step before training, which is run once for all trials."""
    label = method.config.name
    settings = _step_settings(method)
    for path, value in _other_values(study).items():
        changed = configured(job.models[label], {path: value})
        after = _step_settings(method_class(label)(changed, method.info))
        different = [name for name in settings if settings[name] != after[name]]
        if different:
            raise UserError(
                f"tune.method_space.{path}: is of the step {different[0]}, which is run once for all trials; leave it "
                "out"
            )


def _step_settings(method: Method) -> dict[str, Mapping[str, Any]]:
    """The settings of the phases that are run once for all trials, by their names."""
    trial = {stage.name for stage in stages_of_last_training(method)}
    before = [stage for stage in method.stages() if stage.name not in trial]
    settings = {stage.name: dict(stage.settings or {}) for stage in before}
    return settings | {step.name: dict(step.settings) for step in method.steps()}


def _other_values(study: MethodStudy) -> dict[str, Any]:
    """A value that each searched parameter may take beside the job's own."""
    own = parameters(study.method.config)
    others: dict[str, Any] = {}
    for path, values in study.space.items():
        ends = (values.low, values.high) if isinstance(values, Range) else values
        others[path] = next((value for value in ends if value != own[path]), own[path])
    return others
