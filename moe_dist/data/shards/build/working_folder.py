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

from moe_dist.data.shards.build.plan import PLAN_FILE, Plan
from moe_dist.data.shards.build.shard_writer import WrittenShard
from moe_dist.data.shards.index import ShardInfo
from moe_dist.data.storage.locks import locked
from moe_dist.errors import UserError
from moe_dist.files import whole_file, write_text

SHARDS, RECORDS, LOCK = "shards", "records", "lock"


@contextmanager
def only_builder(work: Path) -> Iterator[None]:
    """Hold `work` against all other builds; when the block ends it is gone if nothing is kept in it.

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
    """Let a build of `plan` grow in `work`, which the caller holds; its files go with the block's end.

    They stay where the block is killed or the disk fails, but go where it raises a UserError: then the source is to be
    mended, and its shards will be others. Raises UserError where a build of another plan was begun.
    """
    begun = work / SHARDS / PLAN_FILE
    if begun.is_file():
        plan.demand_same(begun.read_text(), str(work))
    else:
        write_text(begun, plan.text())
    try:
        yield
    except UserError:
        _clear(work)
        raise
    _clear(work)


def remove_left_over(work: Path) -> None:
    """Remove what is in `work` of a build that was killed at its very end; that of a process at work stays."""
    if work.exists():
        with suppress(UserError, OSError), only_builder(work):
            _clear(work)


def _clear(work: Path) -> None:
    for name in (SHARDS, RECORDS):
        if (work / name).exists():  # a folder's shards were renamed to it
            shutil.rmtree(work / name)


def save_record(work: Path, split: str, written: WrittenShard) -> None:
    """Remember that a shard is finished."""
    about = json.dumps({"info": asdict(written.info), "image_kinds": dict(written.image_kinds)})
    path = _record(work, split, written.info.name)
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, rows=written.rows, keys=np.array(written.keys), about=np.array(about))


def read_record(work: Path, split: str, name: str) -> WrittenShard | None:
    """What is remembered of the shard `name` of `split`; None where it is not finished."""
    path = _record(work, split, name)
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as record:
        about = json.loads(str(record["about"]))
        return WrittenShard(ShardInfo(**about["info"]), record["rows"], record["keys"].tolist(), about["image_kinds"])


def _record(work: Path, split: str, name: str) -> Path:
    return work / RECORDS / split / f"{name}.npz"
