"""What a result depends on, as settings and as a fingerprint over them: equal fingerprints, equal numbers.

1. A step depends on its own settings, the data's and the seed, on the training images, and on the steps before it.
2. A training depends on the steps, the method's settings, the training and the validation images (schedules look at
   them), and on what is decided on the spot: precision, what a network sees of a batch, what random crops cut.
3. An evaluation depends on the training, on the test images and on how models are looked at and chosen.

Which fields count is declared where they are (schema.Part). How many workers there are, where files lie and how fast
they are read is in none of the three.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from moe_dist.data.opened.images import DecodedImages
from moe_dist.data.opened.opened import OpenedData
from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.job import Job
from moe_dist.methods.base import Method
from moe_dist.methods.phases import Phase, SideBySide, Stage, Step
from moe_dist.settings.schema import Part, settings_of

SCHEME = 3
"""Raised when a default changes, or what is counted: older results are then told apart, and never taken for new ones.
A test holds the defaults against this number."""


def fingerprint(*parts: Any) -> str:
    """sha256 over JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class PlannedStep:
    """A step, with the fingerprint of all that leads to its result."""

    step: Step
    fingerprint: str


@dataclass(frozen=True)
class PlannedTraining:
    """Stages that train one network one after another, with all that their result depends on and its fingerprint."""

    stages: tuple[Stage, ...]
    settings: Mapping[str, Any]
    fingerprint: str

    @property
    def name(self) -> str:
        """The name of its first stage."""
        return self.stages[0].name


Planned = PlannedStep | tuple[PlannedTraining, ...]
"""A step, or trainings side by side: most often one."""


def plan(method: Method, job: Job, label: str, data: OpenedData) -> list[Planned]:
    """The method's phases in their order; stages that go on with the network of the stage before are one training."""
    inputs = fingerprint(SCHEME, data.digests["train"], job.seed, settings_of(job.data))
    planned: list[Planned] = []
    for group in _grouped(method.phases()):
        if isinstance(group, Step):
            inputs = fingerprint(inputs, group.name, group.settings)
            planned.append(PlannedStep(group, inputs))
            continue
        trainings = []
        for stages in group:
            settings = training_settings(job, label, method, data, stages, inputs)
            trainings.append(PlannedTraining(stages, settings, fingerprint(settings)))
        inputs = fingerprint(inputs, *(training.fingerprint for training in trainings))
        planned.append(tuple(trainings))
    return planned


def _grouped(phases: Sequence[Phase]) -> list[Step | list[tuple[Stage, ...]]]:
    """Steps, and trainings side by side, each as its stages."""
    groups: list[Step | list[tuple[Stage, ...]]] = []
    for phase in phases:
        if isinstance(phase, Step):
            groups.append(phase)
        elif isinstance(phase, SideBySide):
            groups.append([(stage,) for stage in phase.stages])
        elif phase.build is None and groups and isinstance(groups[-1], list) and len(groups[-1]) == 1:
            groups[-1] = [(*groups[-1][0], phase)]
        else:
            groups.append([(phase,)])
    return groups


def stages_of_last_training(method: Method) -> tuple[Stage, ...]:
    """The stages that train the method's own network."""
    last = _grouped(method.phases())[-1]
    assert isinstance(last, list) and len(last) == 1, "a method ends with a stage"
    return last[0]


def main_training(planned: Sequence[Planned]) -> PlannedTraining:
    """The training whose network is the method's: the last phase."""
    last = planned[-1]
    assert not isinstance(last, PlannedStep)
    return last[0]


def up_to(planned: Sequence[Planned], last: str | None) -> list[Planned]:
    """Those up to the step or stage called `last` (None: all)."""
    names = [[item.step.name] if isinstance(item, PlannedStep) else [t.name for t in item] for item in planned]
    number = next((number for number, found in enumerate(names) if last in found), len(planned) - 1)
    return list(planned[: number + 1])


def inputs_of(planned: Sequence[Planned]) -> str:
    """The fingerprint of all that these phases lead to."""
    return fingerprint(
        *(
            item.fingerprint if isinstance(item, PlannedStep) else [training.fingerprint for training in item]
            for item in planned
        )
    )


def training_settings(
    job: Job, label: str, method: Method, data: OpenedData, stages: Sequence[Stage], inputs: str
) -> dict[str, Any]:
    """All that a training of these stages depends on, as JSON values; inputs: the fingerprint of the phases before.

    Stages that say what they depend on are counted with that alone, others with the method's whole configuration.
    """
    if any(stage.settings is None for stage in stages):
        settings = settings_of(job) | {"method": settings_of(job.models[label])}
        settings.pop("methods", None)
    else:
        kept = {name: value for name, value in settings_of(job).items() if name in ("data", "seed", "resources")}
        settings = kept | {"stages": {stage.name: dict(stage.settings or {}) for stage in stages}}
    settings |= {"scheme": SCHEME, "training images": data.digests["train"], "steps": inputs}
    if any(stage.validated for stage in stages):
        settings["validation images"] = data.digests["val"]
    settings["precision"] = decided_precision(job.resources.precision, job.resources.gpus_per_worker)
    return settings | _shares(job, method, stages[0]) | _held(stages, data)


def evaluation_settings(job: Job, label: str, method: Method, data: OpenedData, chosen: str | None) -> dict[str, Any]:
    """What an evaluation depends on beside its training; chosen: the checkpoint that validation chose, if one."""
    return {
        "scheme": SCHEME,
        "test": data.digests["test"],
        "chosen": chosen,
        "top_k": [*method.top_ks()],
        "method": settings_of(job.models[label], Part.EVALUATION),
        "job": settings_of(job.model_copy(update={"method": None, "methods": {}}), Part.EVALUATION),
    }


def decided_precision(precision: str, gpus: float) -> str:
    """The precision of forward passes: `auto` is bf16 on a GPU and fp32 on every CPU, the same on all ranks."""
    if precision == "auto":
        return "bf16" if gpus else "fp32"
    return precision


def _shares(job: Job, method: Method, first: Stage) -> dict[str, Any]:
    """Into how many parts a batch is cut, where the network looks at a part: batch norm and dropout do.

    Experts over ranks see their group's batch, which is another part where they hold batch norm.
    """
    parts = max(job.workers, job.parallel.micro_batches)
    if parts == 1:
        return {}
    looking = [name for name, module in untrained(method, first, job.seed).named_modules() if _looks(module)]
    counted: dict[str, Any] = {"batch_parts": parts} if looking or method.looks_at_shares else {}
    if job.parallel.expert > 1 and any("members." in name for name in looking):
        counted["expert_ranks"] = job.parallel.expert
    return counted


def untrained(method: Method, stage: Stage, seed: int) -> nn.Module:
    """A network as the training that begins with `stage` has it, in this process and with weights that mean nothing."""
    if stage.build is None:
        return method.build(IN_ONE_PROCESS, {}, seed)
    stages = {stage.name: stage for stage in method.stages()}
    return stage.build(IN_ONE_PROCESS, {}, lambda name: untrained(method, stages[name], seed), seed)


def _looks(module: nn.Module) -> bool:
    """Whether what `module` gives for a sample depends on the samples beside it, or on random numbers of its rank."""
    return isinstance(module, _BatchNorm) or (isinstance(module, _DropoutNd) and module.p > 0)


def _held(stages: Sequence[Stage], data: OpenedData) -> dict[str, Any]:
    """What random crops are cut from: the image on disk, or the square that is held in memory."""
    if all(stage.augment.resized_crop is None for stage in stages):
        return {}
    return {"crops_of": "square" if isinstance(data.train.images, DecodedImages) else "image"}
