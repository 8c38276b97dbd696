"""The folder in which a build grows: its plan, and a record of every shard that is finished."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from moe_dist.data.shards.build.destination import SHARDS
from moe_dist.data.shards.build.plan import PLAN_FILE, Plan
from moe_dist.data.shards.build.shard_writer import WrittenShard
from moe_dist.data.shards.index import ShardInfo
from moe_dist.data.storage.locks import locked
from moe_dist.errors import UserError
from moe_dist.files import whole_file, write_text

RECORDS, LOCK = "records", "lock"


@contextmanager
def only_builder(work: Path) -> Iterator[None]:
    """Keep all other builds out of `work` while the block runs; then remove the folder if nothing is kept in it.

    Raises UserError where another process builds there.
    """
    with ExitStack() as held:
        try:
            held.enter_context(locked(work / LOCK, wait=False))
        except BlockingIOError:
            raise UserError(f"{work}: another process builds these shards; wait until it is done") from None
        try:
            yield
        finally:
            with suppress(OSError):  # it was removed by hand, or the next to build here is in it already
                if os.listdir(work) == [LOCK]:
                    (work / LOCK).unlink()
                    work.rmdir()


@contextmanager
def build_in(work: Path, plan: Plan) -> Iterator[None]:
    """Begin or go on with a build of `plan` in `work`, which the caller holds; its files go when the block ends.

    They stay where the process is killed or the disk fails. They go where the block raises a UserError: the source must
    be mended, and gives other shards then. Raises UserError where a build of another plan was begun.
    """
    begun = work / SHARDS / PLAN_FILE
    if begun.is_file():
        plan.require_same(begun.read_text(), str(work))
    else:
        write_text(begun, plan.text())
    try:
        yield
    except UserError:
        _clear(work)
        raise
    _clear(work)


def remove_left_over(work: Path) -> None:
    """Remove what a build that was killed at its very end left in `work`; a running build's files stay."""
    if work.exists():
        with suppress(UserError, OSError), only_builder(work):
            _clear(work)


def _clear(work: Path) -> None:
    """Remove the shards and records in `work`."""
    for name in (SHARDS, RECORDS):
        if (work / name).exists():  # a folder's shards were renamed to it
            shutil.rmtree(work / name)


def save_record(work: Path, split: str, written: WrittenShard) -> None:
    """Record that a shard of `split` is finished."""
    about = json.dumps({"info": asdict(written.info), "image_kinds": dict(written.image_kinds)})
    with whole_file(work / RECORDS / split / f"{written.info.name}.npz") as partial, partial.open("wb") as file:
        np.savez(file, rows=written.rows, keys=np.array(written.keys), about=np.array(about))


def read_record(work: Path, split: str, name: str) -> WrittenShard | None:
    """The record of the shard `name` of `split`; None where it is not finished."""
    path = work / RECORDS / split / f"{name}.npz"
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as record:
        about = json.loads(str(record["about"]))
        return WrittenShard(ShardInfo(**about["info"]), record["rows"], record["keys"].tolist(), about["image_kinds"])
