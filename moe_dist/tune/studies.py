"""The studies of a job: one of each expert, or one of the method; where they start, and which search they belong to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import TypeAdapter

from moe_dist.data.batch import TrainingSet
from moe_dist.data.opened.opened import OpenedData
from moe_dist.errors import UserError
from moe_dist.job import Job
from moe_dist.methods.base import Method
from moe_dist.methods.search import ExpertSearch
from moe_dist.record.fingerprints import (
    SCHEME,
    Planned,
    decided_precision,
    inputs_of,
    plan,
    stages_of_last_training,
    up_to,
)
from moe_dist.settings.schema import settings_of
from moe_dist.settings.tune import METHOD, Space, TuneConfig
from moe_dist.tune.results import StudyInfo
from moe_dist.tune.search import Comparison, SearchedStudy
from moe_dist.tune.space import Distributions, distributions, nearest, parameters, read_space
from moe_dist.tune.study import SamplerSettings, Study

FOLDER = "search"
"""The folder of a search's journals and results, in the method's folder."""
SHARED = frozenset({"sampler", "random_trials", "starts", "rungs", "rung_factor"})
"""Fields of `tune` that any study's suggestions depend on. Budget, backend and resources may change from run to run."""


def tune_settings(job: Job) -> TuneConfig:
    """The section `tune` of a job of that kind."""
    assert job.tune is not None
    return job.tune


class Studies(ABC):
    """The studies of one kind, which are one search."""

    journal: str
    """The name of its file in the search's folder."""
    space_field: ClassVar[str]
    """The field of `tune` that holds the space."""
    own_settings: ClassVar[frozenset[str]] = frozenset()
    """Fields of `tune` that these studies' suggestions depend on, beside SHARED and the space."""

    def __init__(self, job: Job, method: Method) -> None:
        self.job, self.method, self.settings = job, method, tune_settings(job)
        self.sampler = SamplerSettings(self.settings.sampler, self.settings.random_trials, job.seed)

    @property
    @abstractmethod
    def space(self) -> Space:
        """The job's space, or else the method's own."""

    @property
    @abstractmethod
    def batch(self) -> int:
        """The most trials of a study that are begun together."""

    @abstractmethod
    def before(self, data: OpenedData) -> list[Planned]:
        """The phases whose results the trials need."""

    @property
    def trial_stages(self) -> Sequence[str]:
        """The names of the stages that a trial trains; none where it trains an expert alone."""
        return ()

    def _planned(self, data: OpenedData) -> list[Planned]:
        return plan(self.method, self.job, self.method.config.name, data)

    @property
    @abstractmethod
    def title(self) -> str:
        """What is searched, in words."""

    @abstractmethod
    def distributions(self) -> Distributions:
        """The distributions of the space. Raises UserError where it does not fit the configuration."""

    @abstractmethod
    def infos(self, class_names: tuple[str, ...], training_set: TrainingSet) -> dict[str, StudyInfo]:
        """What is searched, by the study's name."""

    @abstractmethod
    def create(self, infos: Mapping[str, StudyInfo]) -> list[SearchedStudy]:
        """The studies, without trials."""

    def identity(self, data: OpenedData) -> dict[str, Any]:
        """All that the search depends on, known before any step is run; a journal of another identity is refused."""
        named = self.settings.model_dump(mode="json", include=set(SHARED | self.own_settings))
        named[self.space_field] = TypeAdapter(Space).dump_python(self.space, mode="json")
        return {
            "job": self.job.name,
            "seed": self.job.seed,
            "scheme": SCHEME,
            "data and steps": inputs_of(self.before(data)),
            "validation images": data.digests["val"],
            "precision": decided_precision(self.job.resources.precision, self.job.resources.gpus_per_task),
            "method": settings_of(self.method.config),
        } | {f"tune.{name}": value for name, value in named.items()}


class ExpertStudies(Studies):
    """A study of each expert that is searched, named by the expert's number."""

    journal = "experts.jsonl"
    space_field = "space"
    own_settings = frozenset({"batch", "epochs", "validate_every"})

    @property
    def search(self) -> ExpertSearch:
        """The method's search of experts. Raises UserError where it has none."""
        found = self.method.expert_search()
        if found is None:
            raise UserError(
                f"tune.of: the experts of {self.method.config.name} are not trained alone, so there is no search of "
                "each; set tune.of to [method], or choose a method that has one (dfcp)"
            )
        return found

    @property
    def title(self) -> str:
        """See Studies."""
        return f"{len(self.experts)} expert{'s' if len(self.experts) > 1 else ''}"

    @property
    def experts(self) -> Sequence[int]:
        """The numbers of the experts that are searched."""
        return self.settings.experts or range(len(self.search.defaults()))

    @property
    def space(self) -> Space:
        """See Studies."""
        return self.settings.space or read_space(self.search.space)

    @property
    def batch(self) -> int:
        """See Studies."""
        return self.settings.batch

    def before(self, data: OpenedData) -> list[Planned]:
        """See Studies."""
        return up_to(self._planned(data), self.search.last_step)

    def distributions(self) -> Distributions:
        """See Studies."""
        return distributions(self.space, self.search.defaults()[0], "tune.space")

    def infos(self, class_names: tuple[str, ...], training_set: TrainingSet) -> dict[str, StudyInfo]:
        """See Studies."""
        defaults = self.search.defaults()
        samples = np.bincount(training_set.labels, minlength=len(defaults))
        return {
            str(expert): StudyInfo(class_names[expert], int(samples[expert]), defaults[expert])
            for expert in self.experts
        }

    def create(self, infos: Mapping[str, StudyInfo]) -> list[SearchedStudy]:
        """The studies; each begins with the job's configuration and the one that its number of samples suggests."""
        found = self.distributions()
        seeds = tuple(self.job.seed + 1 + number for number in range(self.settings.compare_seeds))
        studies = []
        for name, info in infos.items():
            default = parameters(info.base)
            own = _fitted(found, default)
            suggested = _fitted(found, default | dict(self.search.suggestion(info.samples)))
            starts = [own] if suggested == own else [own, suggested]
            study = Study(name, found, self.sampler, [] if self.settings.starts == "none" else starts)
            studies.append(SearchedStudy(study, Comparison({path: default[path] for path in found}, seeds)))
        return studies


class MethodStudy(Studies):
    """The one study of the method as a whole."""

    space_field = "method_space"
    batch = 1
    """Its trials are trained one after another, so each has its outcome before the next is suggested."""

    def __init__(self, job: Job, method: Method, tuned: str = "") -> None:
        """tuned: a digest of the experts that a search found. With other experts it is another study."""
        super().__init__(job, method)
        self.journal = f"{METHOD}-{tuned}.jsonl" if tuned else f"{METHOD}.jsonl"

    @property
    def title(self) -> str:
        """See Studies."""
        return f"{self.method.config.name} as a whole"

    def before(self, data: OpenedData) -> list[Planned]:
        """See Studies."""
        return self._planned(data)[:-1]

    @property
    def trial_stages(self) -> Sequence[str]:
        """See Studies."""
        return [stage.name for stage in stages_of_last_training(self.method)]

    @property
    def space(self) -> Space:
        """See Studies."""
        space = self.settings.method_space or read_space(self.method.search_space())
        if not space:
            raise UserError(f"tune.method_space: {self.method.config.name} has no search space of its own; give one")
        return space

    def distributions(self) -> Distributions:
        """See Studies."""
        return distributions(self.space, self.method.config, "tune.method_space")

    def infos(self, class_names: tuple[str, ...], training_set: TrainingSet) -> dict[str, StudyInfo]:
        """See Studies."""
        config = self.method.config
        return {METHOD: StudyInfo(config.name, len(training_set.samples), config)}

    def create(self, infos: Mapping[str, StudyInfo]) -> list[SearchedStudy]:
        """The study, which begins with the job's configuration."""
        found = self.distributions()
        own = _fitted(found, parameters(self.method.config))
        return [SearchedStudy(Study(METHOD, found, self.sampler, [] if self.settings.starts == "none" else [own]))]


def _fitted(found: Distributions, values: Mapping[str, Any]) -> dict[str, Any]:
    """For each searched parameter, the value of its distribution that is nearest to its own."""
    return {path: nearest(distribution, values[path]) for path, distribution in found.items()}
