"""What results depend on, as settings and as fingerprints (hashes) of them: equal fingerprints mean equal results.

1. A step depends on its own settings, those of the data, the seed, the training images and the earlier steps.
2. A training depends on the steps, the method's settings, the training and the validation images (used by schedules),
   and on what is only known when it runs: the precision, how a batch is divided if the network notices it, and what
   random crops are cut from.
3. An evaluation depends on the training, the test images and the settings of evaluation.

Each field of the job declares what depends on it (settings/schema.py: Part). No result depends on the number of
workers, the places of files or the speed of reading.
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

SCHEME = 4
"""Version of fingerprints. It is increased when a default changes, or what counts, so that results of before are not
reused. A test compares the defaults with this version."""


def fingerprint(*parts: Any) -> str:
    """The sha256 of JSON values, in hexadecimal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class PlannedStep:
    """A step, with the fingerprint of all that its result depends on."""

    step: Step
    fingerprint: str


@dataclass(frozen=True)
class PlannedTraining:
    """Stages that train the same network in turn, with all that their result depends on, and its fingerprint."""

    stages: tuple[Stage, ...]
    settings: Mapping[str, Any]
    fingerprint: str

    @property
    def name(self) -> str:
        """The name of its first stage."""
        return self.stages[0].name


Planned = PlannedStep | tuple[PlannedTraining, ...]
"""A step, or trainings that run at the same time, most often one."""


def plan(
    method: Method, job: Job, model: str, data: OpenedData, origin: Mapping[str, Any] | None = None
) -> list[Planned]:
    """The phases of a method, in order. Consecutive stages of one network form one training.

    origin: what the last training begins from (train/origin.py), as JSON values, None if it begins anew.
    """
    inputs = fingerprint(SCHEME, data.digests["train"], job.seed, settings_of(job.data))
    planned: list[Planned] = []
    for group in _grouped(method.phases()):
        if isinstance(group, Step):
            inputs = fingerprint(inputs, group.name, group.settings)
            planned.append(PlannedStep(group, inputs))
            continue
        trainings = []
        for stages in group:
            settings = training_settings(job, model, method, data, stages, inputs)
            if origin is not None and stages[0].name == stages_of_last_training(method)[0].name:
                settings["init_from"] = dict(origin)
            trainings.append(PlannedTraining(stages, settings, fingerprint(settings)))
        inputs = fingerprint(inputs, *(training.fingerprint for training in trainings))
        planned.append(tuple(trainings))
    return planned


def _grouped(phases: Sequence[Phase]) -> list[Step | list[tuple[Stage, ...]]]:
    """Steps, and lists of trainings that run at the same time, each a tuple of stages."""
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
    """The stages of the last training, which trains the method's own network."""
    last = _grouped(method.phases())[-1]
    assert isinstance(last, list) and len(last) == 1, "a method ends with a stage"
    return last[0]


def main_training(planned: Sequence[Planned]) -> PlannedTraining:
    """The training of the method's own network, which is the last phase."""
    last = planned[-1]
    assert not isinstance(last, PlannedStep)
    return last[0]


def up_to(planned: Sequence[Planned], last: str | None) -> list[Planned]:
    """The phases up to and including the step or stage called `last` (None: all)."""
    names = [[item.step.name] if isinstance(item, PlannedStep) else [t.name for t in item] for item in planned]
    number = next((number for number, found in enumerate(names) if last in found), len(planned) - 1)
    return list(planned[: number + 1])


def inputs_of(planned: Sequence[Planned]) -> str:
    """The fingerprint of all that a result after these phases depends on."""
    return fingerprint(
        *(
            item.fingerprint if isinstance(item, PlannedStep) else [training.fingerprint for training in item]
            for item in planned
        )
    )


def training_settings(
    job: Job, model: str, method: Method, data: OpenedData, stages: Sequence[Stage], inputs: str
) -> dict[str, Any]:
    """All that a training of these stages depends on, as JSON values.

    inputs: the fingerprint of the earlier phases. If all stages declare their own settings, only these count, otherwise
    the whole configuration of the method does.
    """
    if any(stage.settings is None for stage in stages):
        config = job.models[model]  # its name is a default, which settings_of leaves out
        settings = settings_of(job) | {"method": {"name": config.name} | settings_of(config)}
        settings.pop("methods", None)
    else:
        kept = {name: value for name, value in settings_of(job).items() if name in ("data", "seed", "resources")}
        settings = kept | {"stages": {stage.name: dict(stage.settings or {}) for stage in stages}}
    settings |= {"scheme": SCHEME, "training images": data.digests["train"], "steps": inputs}
    if any(stage.validated for stage in stages):
        settings["validation images"] = data.digests["val"]
    settings["precision"] = decided_precision(job.resources.precision, job.resources.gpus_per_worker)
    settings |= _shares(job, method, stages[0])
    if any(stage.augment.resized_crop is not None for stage in stages):  # cut from the image as stored, or decoded
        settings["crops_of"] = "square" if isinstance(data.train.images, DecodedImages) else "image"
    return settings


def evaluation_settings(job: Job, model: str, method: Method, data: OpenedData, chosen: str | None) -> dict[str, Any]:
    """What an evaluation depends on beside its training; chosen: the checkpoint that is best on validation, if any."""
    calibrates = method.predicts == "classes" and len(data.val_samples) > 0
    return {
        "scheme": SCHEME,
        **({"validation": data.digests["val"]} if calibrates else {}),
        "test": data.digests["test"],
        "chosen": chosen,
        "top_k": [*method.top_ks()],
        "method": settings_of(job.models[model], Part.EVALUATION),
        "job": settings_of(job.model_copy(update={"method": None, "methods": {}}), Part.EVALUATION),
    }


def decided_precision(precision: str, gpus: float) -> str:
    """The precision of forward passes: `auto` is bf16 on a GPU and fp32 on a CPU."""
    if precision == "auto":
        return "bf16" if gpus else "fp32"
    return precision


def _shares(job: Job, method: Method, first: Stage) -> dict[str, Any]:
    """The number of parts of a batch, if the network notices it, as batch normalisation and dropout do; else nothing.

    Experts that are spread over ranks see the batch of their group, so for batch normalisation in them the
    expert-parallel size counts, too.
    """
    parts = max(job.workers, job.parallel.micro_batches)
    if parts == 1 or first.replicated:
        return {}
    noticing = layers_that_notice_shares(method, first, job.seed)
    counted: dict[str, Any] = {"batch_parts": parts} if noticing or method.looks_at_shares else {}
    if job.parallel.expert > 1 and any("members." in name for name in noticing):
        counted["expert_ranks"] = job.parallel.expert
    return counted


def layers_that_notice_shares(method: Method, first: Stage, seed: int) -> list[str]:
    """The names of batch normalisation and dropout in the network of the training that begins with `first`."""
    return [
        name
        for name, module in untrained(method, first, seed).named_modules()
        if isinstance(module, _BatchNorm) or (isinstance(module, _DropoutNd) and module.p > 0)
    ]


def untrained(method: Method, stage: Stage, seed: int) -> nn.Module:
    """The network of the training that begins with `stage`, in this process, without trained weights."""
    if stage.build is None:
        return method.build(IN_ONE_PROCESS, {}, seed)
    stages = {stage.name: stage for stage in method.stages()}
    return stage.build(IN_ONE_PROCESS, {}, lambda name: untrained(method, stages[name], seed), seed)
