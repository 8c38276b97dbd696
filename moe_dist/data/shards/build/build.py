"""Building a dataset's shards: one after the other in this process, or several at a time as Ray tasks.

A build grows in a working folder (working_folder.py). Every shard is written under another name, renamed when it is
whole, and recorded; a build that was killed goes on with the shards that have no record. The content of a shard depends
only on the plan and the shard's number, so the result is the same to the byte, no matter how often the build was broken
off and how many processes made it.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from moe_dist.data.datasets.catalog import open_contents
from moe_dist.data.datasets.samples import SPLITS
from moe_dist.data.longtail import LongTail
from moe_dist.data.shards.build.destination import SHARDS, Destination, destination_at
from moe_dist.data.shards.build.plan import PLAN_FILE, SAMPLES_PER_SHARD, Plan, source_fingerprint
from moe_dist.data.shards.build.shard_writer import OnSamples, ShardWriter, WrittenShard
from moe_dist.data.shards.build.working_folder import (
    build_in,
    only_builder,
    read_record,
    remove_left_over,
    save_record,
)
from moe_dist.data.shards.index import INDEX_FILE, Index, Shrink, read_index, write_index
from moe_dist.data.storage.store import exists, get_bytes, join, shown
from moe_dist.errors import UserError
from moe_dist.private_ray import private_ray
from moe_dist.settings.data import DEFAULT_REMOTE, RemoteConfig
from moe_dist.signals import deferring_signals

OnProgress = Callable[[str, int, int], None]
"""Called with (split, samples done, samples in the split)."""
Write = Callable[[str, Sequence[int], OnSamples], Generator[WrittenShard, None, None]]
"""Writes the shards of a split with the given numbers, and yields each when it is in place, in any order."""
OBJECT_STORE_BYTES = 512 * 2**20
"""The object store of a Ray that is started here (Ray's default: 30 % of the memory). It carries lists of files."""


def build_shards(
    dataset_name: str,
    source: Path | None,
    out: str | Path,
    *,
    long_tail: LongTail | None = None,
    shrink: Shrink | None = None,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    workers: int = 1,
    cache: Path = Path("runs/cache"),
    remote: RemoteConfig = DEFAULT_REMOTE,
    on_progress: OnProgress | None = None,
) -> dict[str, Index]:
    """Write the dataset's splits as shards to out/train, out/val (where it has one), out/test; return their indexes.

    `out` appears whole or not at all. A build that was broken off goes on where it stopped; whole shards of the same
    plan are left as they are. workers: shards that are written at a time; 1 does not need Ray. cache, remote: where
    `out` is a URL, the folder of this machine in which the build keeps its records, and how the store is reached.
    Raises UserError where the source or samples are bad (the files of the first shard with any are named, and nothing
    is kept), `out` holds something else, the disk is full or the store fails (what is done is kept).
    """
    fingerprint = source_fingerprint(dataset_name, source, long_tail)
    plan = Plan(dataset_name, fingerprint, long_tail, shrink, samples_per_shard)
    destination = destination_at(out, cache, remote)
    try:
        indexes = _whole(destination, plan)
        if indexes is None:
            with only_builder(destination.work):
                indexes = _whole(destination, plan)  # another build may have ended before this one got the lock
                if indexes is None:
                    with build_in(destination.work, plan):
                        contents = open_contents(dataset_name, source, long_tail)
                        return _build(ShardWriter(contents, plan, destination), workers, on_progress)
        remove_left_over(destination.work)
        return indexes
    except OSError as error:
        raise UserError(
            f"{shown(out)}: cannot build shards: {error}; check the source, the place and its free space, and "
            "run it again: it goes on where it stood"
        ) from None


def _whole(destination: Destination, plan: Plan) -> dict[str, Index] | None:
    """The indexes of the whole shards of `plan` at the destination, by split; None where it is free.

    Raises UserError where it holds something else.
    """
    if not destination.in_use():
        return None
    place, remote = destination.place, destination.remote
    built = join(place, PLAN_FILE)
    if not exists(built, remote) or get_bytes(built, remote).decode() != plan.text():
        raise UserError(f"{shown(place)}: already holds something; name another folder or remove it")
    splits = [split for split in SPLITS if exists(join(place, split, INDEX_FILE), remote)]
    return {split: read_index(join(place, split), remote) for split in splits}


def _build(writer: ShardWriter, workers: int, on_progress: OnProgress | None) -> dict[str, Index]:
    """Write all shards and indexes and put them in place; the indexes by split."""
    indexes = {}
    with _writing(writer, workers) as write:
        for split, total in writer.contents.counts.items():
            if not total:
                raise UserError(f"dataset {writer.plan.dataset}: split {split} holds no images")
            indexes[split] = _build_split(writer, split, write, on_progress)
    for split, index in indexes.items():
        folder = writer.destination.work / SHARDS / split
        folder.mkdir(exist_ok=True)
        write_index(folder, index)
    writer.destination.publish()
    return indexes


def _build_split(writer: ShardWriter, split: str, write: Write, on_progress: OnProgress | None) -> Index:
    """Write the shards of `split` that no earlier run of this build finished; the index of all."""
    work, total, count = writer.destination.work, writer.contents.counts[split], writer.shards(split)
    shards: dict[int, WrittenShard] = {}
    for number in range(count):
        name = writer.name(split, number)
        record = read_record(work, split, name)
        if record is not None and writer.destination.holds(f"{split}/{name}", record.info):
            shards[number] = record
    done = sum(len(shard.keys) for shard in shards.values())

    def advance(samples: int) -> None:
        nonlocal done
        done += samples
        if on_progress is not None:
            on_progress(split, done, total)

    advance(0)  # a clock that starts with the first call counts only what this run does
    missing = [number for number in range(count) if number not in shards]
    with closing(write(split, missing, advance)) as written:  # a failure here ends the tasks that still run
        for shard in written:
            save_record(work, split, shard)
            shards[int(shard.rows["shard"][0])] = shard
    in_order = [shards[number] for number in range(count)]
    _require_unique_keys(writer, split, in_order)
    kinds = sum((Counter(shard.image_kinds) for shard in in_order), Counter[str]())
    return Index(
        dataset=writer.plan.dataset,
        split=split,
        class_names=tuple(writer.contents.class_names),
        shards=tuple(shard.info for shard in in_order),
        rows=np.concatenate([shard.rows for shard in in_order]),
        image_kinds=dict(kinds),
        long_tail=None if writer.plan.long_tail is None else writer.plan.long_tail.decided(writer.contents.shuffled),
        shuffled=writer.contents.shuffled,
        shrink=writer.plan.shrink,
        superclasses=writer.contents.superclasses,
    )


def _require_unique_keys(writer: ShardWriter, split: str, shards: Sequence[WrittenShard]) -> None:
    """Raise UserError where two shards hold the same key."""
    keys = [key for shard in shards for key in shard.keys]
    if len(set(keys)) == len(keys):
        return
    (key, _), *_ = Counter(keys).most_common(1)
    second = len(keys) - 1 - keys[::-1].index(key)
    size = writer.plan.samples_per_shard
    number = int(writer.numbers(split, second // size)[second % size])
    raise UserError(f"{writer.contents.sample(split, number).origin}: key {key} occurs twice")


@contextmanager
def _writing(writer: ShardWriter, workers: int) -> Iterator[Write]:
    """A function that writes shards, in this process or as `workers` Ray tasks at a time."""
    if workers == 1:
        yield lambda split, numbers, on_samples: (writer.write(split, number, on_samples) for number in numbers)
        return
    with _connected_ray(workers) as ray:
        reference = ray.put(writer)
        yield lambda split, numbers, on_samples: _write_with_ray(reference, workers, split, numbers, on_samples)


@contextmanager
def _connected_ray(workers: int) -> Iterator[Any]:
    """Ray as it runs here; else connected for the block to the cluster that RAY_ADDRESS names, or to one of its own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UserError("--workers above 1 needs Ray, which is not installed: pip install 'ray[default]'") from None
    if ray.is_initialized():
        yield ray
        return
    own: dict[str, Any] = {"address": "local", "num_cpus": workers, "object_store_memory": OBJECT_STORE_BYTES}
    is_own = (os.environ.get("RAY_ADDRESS") or "local") == "local"
    try:
        with deferring_signals(), private_ray() if is_own else nullcontext():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **(own if is_own else {"address": "auto"}))
        yield ray
    finally:
        ray.shutdown()


def _write_with_ray(
    reference: Any, workers: int, split: str, numbers: Sequence[int], on_samples: OnSamples
) -> Generator[WrittenShard, None, None]:
    """Write shards as Ray tasks, `workers` at a time. Raises a task's exception when all other tasks have ended."""
    import ray

    task = ray.remote(_write_in_task).options(num_cpus=1, max_retries=2)
    waiting = list(numbers)
    running: list[Any] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(task.remote([reference], split, waiting.pop(0)))
            (ready, *_), running = ray.wait(running)
            written = ray.get(ready)
            if isinstance(written, Exception):
                raise written
            on_samples(len(written.keys))
            yield written
    except ray.exceptions.RayError as error:
        raise ChildProcessError(f"Ray lost a worker that wrote shards ({str(error).splitlines()[0]})") from None
    finally:
        for unfinished in running:
            ray.cancel(unfinished)
        if running:
            ray.wait(running, num_returns=len(running))  # or one could write to a folder that is being removed


def _write_in_task(reference: list[Any], split: str, number: int) -> WrittenShard | Exception:
    """Write one shard. An exception that a user can mend is returned: one that Ray raises has its traceback as text.

    The reference comes in a list: Ray would unpack a bare one, and with it all file names of the dataset, every time.
    """
    try:
        return _received(reference[0]).write(split, number)
    except (UserError, OSError) as error:
        return error


@lru_cache(maxsize=1)
def _received(reference: Any) -> ShardWriter:
    """The writer that the driver put into Ray's store, fetched once a process."""
    import ray

    return ray.get(reference)
