"""The finished model that a training begins from (`init_from`): what is taken over of it, and what begins anew.

1. A tensor is taken over where the new network has one of its name and shape: trunk, experts, gates, buffers.
2. Where the classes are others, tensors whose size depends on their number (heads) begin anew, as the job says.
3. Where experts belong to classes (DFCP-MoE), an expert is that of the class of the same name.

Optimisers, schedules and the order of samples begin anew. It happens once, after the first stage has prepared itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from moe_dist.engine.checkpoint import weight_files
from moe_dist.errors import UserError
from moe_dist.files import file_sha256, read_json
from moe_dist.job import Job
from moe_dist.methods.base import Method
from moe_dist.methods.registry import method_class
from moe_dist.places import RECORD
from moe_dist.record.exported import exported_content, is_exported
from moe_dist.record.fingerprints import stages_of_last_training, untrained
from moe_dist.record.mirror import working_folder
from moe_dist.record.run_place import RunPlace, run_place
from moe_dist.train.finished import finished_checkpoint, job_of_run, model_of_run

NAMED = 4
"""Tensors, and classes, that a sentence names."""
_MEMBER = re.compile(r"(?<=\.members\.)\d+(?=\.)")


@dataclass(frozen=True)
class Origin:
    """A finished model: where it is, in words; its method and classes; its folder, and the digests of its files.

    run: the run or exported model that the folder lies in, which other nodes fetch if it is at a URL.
    """

    where: str
    method: str
    classes: tuple[str, ...]
    folder: Path
    files: Mapping[str, str]
    run: RunPlace

    def settings(self) -> dict[str, Any]:
        """What a training that begins from it depends on, as JSON values."""
        return {"weights": dict(self.files), "classes": list(self.classes)}

    def pack(self) -> dict[str, Any]:
        """The origin as JSON values, to be sent to a worker."""
        return {
            "where": self.where,
            "method": self.method,
            "classes": list(self.classes),
            "folder": str(self.folder.relative_to(self.run.folder)),
            "files": dict(self.files),
            "run": str(self.run.folder),
            "url": self.run.url,
        }

    @staticmethod
    def unpack(packed: Mapping[str, Any], cache: Path) -> Origin:
        """The origin from what `pack` returned; cache: the folder of what this node keeps."""
        url, classes = packed["url"], tuple(packed["classes"])
        run = RunPlace(Path(packed["run"]) if url is None else working_folder(url, cache), url)
        return Origin(packed["where"], packed["method"], classes, run.folder / packed["folder"], packed["files"], run)

    def take_over(self, network: nn.Module, method: Method) -> None:
        """Overwrite those tensors of `network` that this process holds and the origin has; in place.

        Raises UserError where a file is not the one that the run began from.
        """
        if not all((self.folder / name).is_file() for name in self.files):
            self.run.fetched()
        for name, sha256 in self.files.items():
            if not (self.folder / name).is_file() or file_sha256(self.folder / name) != sha256:
                raise UserError(
                    f"init_from: {self.folder / name} is not there, or not what it was when the run began; give the "
                    "command again, on storage that every node reaches"
                )
        source = self.names_for(method, _shapes(network))
        taken: dict[str, Tensor] = {}
        for file in self.files:
            with safe_open(self.folder / file, "pt") as tensors:
                there = set(tensors.keys())
                taken |= {name: tensors.get_tensor(other) for name, other in source.items() if other in there}
        with torch.no_grad():
            network.load_state_dict(taken, strict=False)

    def names_for(self, method: Method, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
        """The origin's tensor for each tensor of a network of `shapes` that is taken over."""
        own = method.info.class_names
        anew = set() if own == self.classes else tensors_of_classes(method)
        here, names = self._shapes(), {}
        for name, shape in shapes.items():
            other = self._name_there(name, own) if method.experts_are_classes else name
            if name not in anew and other is not None and here.get(other) == shape:
                names[name] = other
        return names

    def _name_there(self, name: str, own: tuple[str, ...]) -> str | None:
        """A tensor's name in the origin; of a class's expert, that of the class of the same name, if there is one."""
        member = _MEMBER.search(name)
        if member is None:
            return name
        class_name = own[int(member[0])]
        return _MEMBER.sub(str(self.classes.index(class_name)), name) if class_name in self.classes else None

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the origin's tensors, by name."""
        found: dict[str, tuple[int, ...]] = {}
        for file in self.files:
            try:
                with safe_open(self.folder / file, "pt") as tensors:
                    found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
            except (OSError, SafetensorError) as error:
                raise UserError(f"init_from: {self.folder / file}: cannot be read ({error})") from None
        return found

    def in_words(self, method: Method) -> str:
        """What is taken over and what begins anew, a sentence. Raises UserError where nothing is taken over."""
        shapes = _shapes(_empty_network(method))
        taken = self.names_for(method, shapes)
        if not taken:
            raise UserError(
                f"init_from: {self.where} has no tensor that fits the network of this job; give its settings "
                "(backbone, widths, experts) as they were, or leave init_from out"
            )
        numbers = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
        share = sum(numbers[name] for name in taken) / sum(numbers.values())
        said = f"init_from: {self.where}: {len(taken)} of {len(shapes)} tensors "
        said += f"({share:.1%} of the numbers) are taken over"
        new = [name for name in shapes if name not in taken]
        said += f"; {_some(new)} begin{'s' if len(new) == 1 else ''} anew" if new else ""
        return said + self._classes_in_words(method.info.class_names)

    def _classes_in_words(self, own: tuple[str, ...]) -> str:
        if own == self.classes:
            return ""
        added, gone = [name for name in own if name not in self.classes], [n for n in self.classes if n not in own]
        parts = [f"{what}: {_some(names)}" for what, names in (("new", added), ("gone", gone)) if names]
        return f"; the classes are others ({'; '.join(parts) or 'their order'})"


def origin_of(job: Job, model: str) -> Origin | None:
    """What the job's `model` begins from; None without `init_from`.

    Of a run of several models it is the one of the same name. Raises UserError where there is no finished training, or
    it is of another method.
    """
    if job.init_from is None:
        return None
    place, method = run_place("init_from")(job.init_from), job.models[model].name
    if method_class(method).predicts == "clusters":
        raise UserError(f"init_from: {method} finds its clusters anew from its own pretraining; leave it out")
    folder = _fetched(place)
    found = _exported(place) if is_exported(folder) else _of_run(place, model)
    if found.method != method:
        raise UserError(f"init_from: {found.where} is of the method {found.method}, and {model} of {method}")
    return found


@cache
def _fetched(place: RunPlace) -> Path:
    """The folder of a finished run or exported model, fetched once by this process."""
    return place.fetched()


def _exported(place: RunPlace) -> Origin:
    folder = place.folder
    content = exported_content(folder)
    file, classes = content["weights"]["file"], tuple(content["dataset"]["class_names"])
    return Origin(str(place), content["method"]["name"], classes, folder, {file: content["weights"]["sha256"]}, place)


def _of_run(place: RunPlace, model: str) -> Origin:
    folder = place.folder
    source = job_of_run(folder)
    name = model_of_run(folder, source, model if model in source.models or len(source.models) > 1 else None)
    checkpoint = finished_checkpoint(folder, name, "chosen")
    record = read_json(folder / RECORD) or {}
    if "classes" not in record:
        raise UserError(f"init_from: {folder / RECORD} does not say the classes; give another run")
    where, classes = f"{place} ({name}, {checkpoint.name})", tuple(record["classes"])
    return Origin(where, source.models[name].name, classes, checkpoint, weight_files(checkpoint), place)


def tensors_of_classes(method: Method) -> set[str]:
    """The names of tensors whose size depends on the number of classes, found by building for one class more.

    Where the settings allow no class more (experts that are listed one by one), those with a side of that number.
    """
    info = method.info
    own = _shapes(_empty_network(method))
    more = replace(
        info,
        classes=info.classes + 1,
        class_names=(*info.class_names, ""),
        class_counts=(*info.class_counts, 1) if info.class_counts else (),
        superclasses=(*info.superclasses, info.superclasses[-1]) if info.superclasses else None,
    )
    try:
        larger = _shapes(_empty_network(type(method)(method.config, more)))
    except UserError:
        return {name for name, shape in own.items() if info.classes in shape}
    return {name for name, shape in own.items() if larger.get(name) != shape}


def _empty_network(method: Method) -> nn.Module:
    """The method's network in this process, without pretrained weights, which need not be fetched."""
    bare = type(method)(method.config.untrained(), method.info)
    return untrained(bare, stages_of_last_training(bare)[0], 0)


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
