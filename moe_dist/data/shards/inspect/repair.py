"""Repairing damaged shards: a new index leaves out what cannot be read; the shards stay as they are."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from moe_dist.data.shards.index import INDEX_FILE, ROWS_FILE, Index, ShardInfo, read_index, write_index
from moe_dist.data.shards.inspect.check import require_readable, row_states, shard_problems, splits_at
from moe_dist.data.shards.scan import label_problem
from moe_dist.data.storage.store import is_url, shown
from moe_dist.errors import UserError
from moe_dist.files import file_sha256

BACKUP = ".before-repair"


@dataclass(frozen=True)
class RepairedSplit:
    """A split with a new index: how many samples it has now, how many are left out, and why."""

    folder: Path
    kept: int
    dropped: int
    reasons: list[str]


def repair_shards(place: str | Path) -> list[RepairedSplit]:
    """Write a new index for every damaged split of `place`, reasons as "split/shard: key: reason".

    Of a damaged shard, samples whose image is still the one that was indexed are kept. The old index is kept beside the
    new one (index.json.before-repair, index.npy.before-repair). A split without damage stays as it is.
    Raises UserError for a URL, a folder that cannot be written to (before shards are read), an index or shard that
    cannot be read, and where a class would lose all of its samples.
    """
    if is_url(place):
        raise UserError(
            f"{shown(place)}: only a folder can be repaired; repair a copy and build or upload the shards again"
        )
    folders = [Path(split) for split in splits_at(place)]
    for folder in folders:
        _require_writable(folder)
    repairs = {folder: _repair(folder, read_index(folder)) for folder in folders}
    for folder, repair in repairs.items():
        _require_every_class(folder, repair)
    damaged = {folder: repair for folder, repair in repairs.items() if repair.damaged}
    for folder, repair in damaged.items():
        _keep_old_index(folder)
        write_index(folder, repair.new_index())
    return [
        RepairedSplit(
            folder,
            kept=int(repair.kept.sum()),
            dropped=int((~repair.kept).sum()),
            reasons=[
                f"{folder.name}/{shard}: {sample}" for shard, samples in repair.dropped.items() for sample in samples
            ],
        )
        for folder, repair in damaged.items()
    ]


@dataclass
class _Repair:
    """A split's old index, which of its rows to keep [N], and by damaged shard what is left out and its new entry."""

    index: Index
    kept: np.ndarray
    dropped: dict[str, list[str]] = field(default_factory=dict)
    damaged: dict[str, ShardInfo] = field(default_factory=dict)
    image_kinds: Counter[str] = field(default_factory=Counter)

    def new_index(self) -> Index:
        """The index of the rows to keep: shards without samples are not in it, and the others are numbered anew."""
        rows = self.index.rows[self.kept].copy()
        numbers = np.unique(rows["shard"])
        rows["shard"] = np.searchsorted(numbers, rows["shard"])
        shards = [self.index.shards[number] for number in numbers]
        dropped = {name: list(samples) for name, samples in self.index.dropped.items()}
        for name in self.damaged:
            dropped[name] = dropped.get(name, []) + self.dropped[name]
        return replace(
            self.index,
            rows=rows,
            shards=tuple(
                replace(self.damaged.get(shard.name, shard), samples=int(np.sum(rows["shard"] == number)))
                for number, shard in enumerate(shards)
            ),
            image_kinds=dict(self.image_kinds),
            dropped=dropped,
        )


def _repair(folder: Path, index: Index) -> _Repair:
    """The repair of the split in `folder`, all of whose shards are read."""
    repair = _Repair(index, np.ones(len(index.rows), bool))
    shard_of_key: dict[str, str] = {}
    for number, shard in enumerate(index.shards):
        path, places = folder / shard.name, np.flatnonzero(index.rows["shard"] == number)
        if not path.is_file():
            repair.kept[places] = False
            repair.damaged[shard.name] = shard
            repair.dropped[shard.name] = [f"{len(places)} samples: the shard is missing"]
            continue
        require_readable(path)
        damaged = bool(shard_problems(path, index, number, shard_of_key))
        states = row_states(path, index.rows[places], len(index.class_names))
        if damaged:
            for place, state in enumerate(states):
                if (other := shard_of_key.setdefault(state.key, shard.name)) != shard.name:
                    states[place] = replace(state, problem=f"the key is also in {other}")
            repair.damaged[shard.name] = replace(shard, bytes=path.stat().st_size, sha256=file_sha256(path))
            repair.dropped[shard.name] = [f"{state.name}: {state.problem}" for state in states if state.problem]
            repair.kept[places] = [state.problem is None for state in states]
        repair.image_kinds.update(state.name.rpartition(".")[2] for state in states if state.problem is None)
    return repair


def _require_writable(folder: Path) -> None:
    """Raise UserError where no new index can be written to `folder`."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{folder}: a new index cannot be written there ({error.strerror}); make it writable, or repair a copy"
        ) from None


def _require_every_class(folder: Path, repair: _Repair) -> None:
    """Raise UserError where a class would lose all of its samples."""
    labels, classes = repair.index.rows["label"], len(repair.index.class_names)
    known = np.array([label_problem(label, classes) is None for label in labels.tolist()], bool)
    lost = sorted(set(labels[known].tolist()) - set(labels[known & repair.kept].tolist()))
    if lost:
        names = ", ".join(repair.index.class_names[label] for label in lost)
        raise UserError(
            f"{folder}: no sample of class {names} can be read, and a repair would drop the class; "
            "build the shards again"
        )


def _keep_old_index(folder: Path) -> None:
    """Copy the index beside itself, under a name that is free."""
    endings = (BACKUP if time == 1 else f"{BACKUP}-{time}" for time in range(1, 1 << 16))
    ending = next(ending for ending in endings if not (folder / f"{INDEX_FILE}{ending}").exists())
    for name in (ROWS_FILE, INDEX_FILE):
        shutil.copyfile(folder / name, folder / f"{name}{ending}")
