"""Predictions by worker processes of a cluster, for folders of millions: a batch is a Ray task.

Each process loads the model once and reads its images by itself, so run directory and images lie where every node
reaches them. Tasks are given out as others end; rows come back to this process, which alone writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from moe_dist.launch.ray_stream import ray_stream
from moe_dist.terminal import Show
from moe_dist.use.batches import How, best_device, predicted
from moe_dist.use.inputs import Item, Source
from moe_dist.use.load import Loading
from moe_dist.use.model import TrainedModel
from moe_dist.use.rows import Row

Predict = Callable[[Sequence[Item]], Iterator[list[Row]]]
Reference = tuple[str, int, Any, str | None]
"""A sample's name, the number of its source, its key there, its class if that is known: what is sent of an Item."""


@dataclass(frozen=True)
class Workers:
    """How many processes predict, and what each of them loads."""

    count: int
    loading: Loading


@dataclass(frozen=True)
class _Common:
    """What all tasks share; sources are sent once, as the list of a tar's members is long."""

    loading: Loading
    how: How
    sources: Sequence[Source]


@contextmanager
def by_workers(workers: Workers, how: How, show: Show) -> Iterator[Predict]:
    """The function that predicts items by worker processes: rows come a batch at a time, as batches are finished."""
    with ray_stream(workers.count, show) as stream:

        def predict(items: Sequence[Item]) -> Iterator[list[Row]]:
            sources = list({id(item.source): item.source for item in items}.values())
            common = _Common(workers.loading, how, sources)
            yield from stream(_predict, _parts(items, how.batch, sources), common)

        yield predict


def _parts(items: Sequence[Item], size: int, sources: Sequence[Source]) -> Iterator[list[Reference]]:
    places = {id(source): place for place, source in enumerate(sources)}
    for start in range(0, len(items), size):
        yield [(item.name, places[id(item.source)], item.key, item.label) for item in items[start : start + size]]


def _predict(common: _Common, part: Sequence[Reference]) -> list[Row]:
    """A task: the rows of a batch."""
    items = [Item(name, common.sources[source], key, label) for name, source, key, label in part]
    return [row for rows in predicted(_loaded(common.loading), items, common.how) for row in rows]


@cache
def _loaded(loading: Loading) -> TrainedModel:
    """The model, loaded once in a process."""
    return loading.load().to(best_device())
