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
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from moe_dist.data.opened.images import DecodedImages
from moe_dist.data.opened.opened import OpenedData
from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.job import Job
from moe_dist.methods.base import Method, Step
from moe_dist.settings.schema import Part, settings_of

SCHEME = 2
"""Raised when a default changes, or what is counted: older results are then told apart, and never taken for new ones.
A test holds the defaults against this number."""
DIGESTS = ("steps", "training images", "validation images")
"""The settings of a training that are fingerprints themselves: there is nothing to read in them."""


def fingerprint(*parts: Any) -> str:
    """sha256 over JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def step_fingerprints(method: Method, job: Job, data: OpenedData) -> Iterator[tuple[Step, str]]:
    """The method's steps in their order, each with the fingerprint of all that leads to its result."""
    inputs = data_inputs(job, data)
    for step in method.steps():
        inputs = fingerprint(inputs, step.name, step.settings)
        yield step, inputs


def data_inputs(job: Job, data: OpenedData) -> str:
    """The fingerprint of what the first step depends on: the training images, how they are seen, and the seed."""
    return fingerprint(SCHEME, data.digests["train"], job.seed, settings_of(job.data))


def inputs_of(method: Method, job: Job, data: OpenedData, last: str | None = None) -> str:
    """The fingerprint of all that leads to the results of the steps up to `last` (None: all)."""
    found = data_inputs(job, data)
    for step, inputs in step_fingerprints(method, job, data):
        found = inputs
        if step.name == last:
            break
    return found


def training_settings(job: Job, label: str, method: Method, data: OpenedData) -> dict[str, Any]:
    """All that the training of the model `label` depends on, as JSON values; their fingerprint names the training."""
    settings = settings_of(job) | {
        "scheme": SCHEME,
        "method": settings_of(job.models[label]),
        "training images": data.digests["train"],
        "validation images": data.digests["val"],
        "steps": inputs_of(method, job, data),
        "precision": decided_precision(job.resources.precision, job.resources.gpus_per_worker),
    }
    settings.pop("methods", None)
    return settings | _shares(job, method) | _held(method, data)


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


def _shares(job: Job, method: Method) -> dict[str, Any]:
    """Into how many parts a batch is cut, where the network looks at a part: batch norm and dropout do.

    Experts over ranks see their group's batch, which is another part where they hold batch norm.
    """
    parts = max(job.workers, job.parallel.micro_batches)
    if parts == 1:
        return {}
    looking = [name for name, module in method.build(IN_ONE_PROCESS, {}, job.seed).named_modules() if _looks(module)]
    counted: dict[str, Any] = {"batch_parts": parts} if looking or method.looks_at_shares else {}
    if job.parallel.expert > 1 and any("members." in name for name in looking):
        counted["expert_ranks"] = job.parallel.expert
    return counted


def _looks(module: nn.Module) -> bool:
    """Whether what `module` gives for a sample depends on the samples beside it, or on random numbers of its rank."""
    return isinstance(module, _BatchNorm) or (isinstance(module, _DropoutNd) and module.p > 0)


def _held(method: Method, data: OpenedData) -> dict[str, Any]:
    """What random crops are cut from: the image on disk, or the square that is held in memory."""
    if all(stage.augment.resized_crop is None for stage in method.stages()):
        return {}
    return {"crops_of": "square" if isinstance(data.train.images, DecodedImages) else "image"}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What changed from one set of settings to another, by field: "method.epochs: 4, now 6"."""
    ours, theirs = _flat(now), _flat(before)
    changed = [name for name in sorted(ours.keys() | theirs.keys()) if _shown(ours, name) != _shown(theirs, name)]
    fields = [f"{name}: {_shown(theirs, name)}, now {_shown(ours, name)}" for name in changed if name not in DIGESTS]
    return fields + [f"other {name}" for name in changed if name in DIGESTS and not (name == "steps" and fields)]


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(settings, Mapping) and settings:
        return {path: leaf for key, item in settings.items() for path, leaf in _flat(item, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): settings}


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name]) if name in settings else "its default"
