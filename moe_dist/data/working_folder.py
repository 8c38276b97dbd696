"""The folder in which a build grows: its plan, and a record of every shard that is finished."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from moe_dist.data.index import ShardInfo
from moe_dist.data.plan import PLAN_FILE, Plan
from moe_dist.data.shard_writer import WrittenShard
from moe_dist.errors import UserError
from moe_dist.files import whole_file, write_text

SHARDS, RECORDS = "shards", "records"


@contextmanager
def working_folder(work: Path, plan: Plan) -> Iterator[None]:
    """Hold `work` for a build of `plan`; gone when the block ends, kept where it is killed or the disk fails.

    It goes, too, where the block raises a UserError: then the source is to be mended, and its shards will be others.
    Raises UserError where another process builds there, or a build of another plan was begun.
    """
    (work / SHARDS).mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{work}: another process builds these shards; wait until it is done") from None
        begun = work / SHARDS / PLAN_FILE
        if begun.is_file():
            plan.demand_same(begun.read_text(), str(work))
        else:
            write_text(begun, plan.text())
        try:
            yield
        except UserError:
            shutil.rmtree(work)
            raise
        shutil.rmtree(work)


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
