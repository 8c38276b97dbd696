"""The numbers of workers that may train an elastic job, and the jobs that cannot be elastic."""

from __future__ import annotations

from typing import Any

import pytest
from small_jobs import dfcp, sparse, traditional

from moe_dist.data.batch import DatasetInfo
from moe_dist.errors import UserError
from moe_dist.job import Job, parse_job
from moe_dist.launch.choose import require_launcher
from moe_dist.methods.base import Method
from moe_dist.methods.registry import method_class
from moe_dist.train.elastic import worker_counts

PLAIN = traditional().method.gate.model_dump() | {"dropout": 0.0}
DROPOUT = PLAIN | {"dropout": 0.5}


def method_of(job: Job) -> Method:
    names = tuple(map(str, range(10)))
    info = DatasetInfo(classes=10, class_names=names, image_size=16, train_images=200, class_counts=(20,) * 10)
    return method_class(job.method.name)(job.method, info)


def counts(**fields: Any) -> tuple[int, ...]:
    job = traditional(**fields)
    return worker_counts(job, method_of(job))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"workers": 4}, ()),
        ({"workers": 4, "min_workers": 4}, ()),
        ({"workers": 4, "min_workers": 2}, (2, 3, 4)),
        ({"workers": 6, "min_workers": 1}, (1, 2, 3, 4, 6)),
        ({"workers": 6, "min_workers": 2, "batch_size": 42}, (2, 3, 6)),
        ({"workers": 8, "min_workers": 2, "parallel": {"expert": 2}}, (2, 4, 6, 8)),
        ({"workers": 4, "min_workers": 1, "parallel": {"micro_batches": 4}}, (1, 2, 4)),
        ({"workers": 4, "min_workers": 1, "parallel": {"micro_batches": 2}}, (1, 2, 3, 4)),
        ({"workers": 4, "min_workers": 1, "parallel": {"micro_batches": 8}, "gate": DROPOUT}, (1, 2, 4)),
    ],
)
def test_the_numbers_divide_batches_groups_and_micro_batches(fields: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert counts(**{"gate": PLAIN} | fields) == expected


def test_a_stage_that_every_rank_computes_whole_does_not_count() -> None:
    """DFCP's Siamese network has batch normalisation."""
    job = dfcp(workers=3, min_workers=1)
    assert worker_counts(job, method_of(job)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"workers": 4, "min_workers": 3, "parallel": {"micro_batches": 4}},
            r"^min_workers = 3: no number of workers from there up to 4 divides the batches of traditional_moe "
            r"\(joint: 48\), parallel\.expert = 1 and parallel\.micro_batches = 4; set it to 2, or leave it out$",
        ),
        ({"workers": 2, "min_workers": 1, "parallel": {"expert": 2}}, r"parallel\.expert = 2.*; leave it out$"),
        (
            {"workers": 4, "min_workers": 2, "gate": DROPOUT},
            r"^min_workers = 2: traditional_moe notices how a batch is divided .* set parallel\.micro_batches to 4, ",
        ),
    ],
)
def test_where_no_smaller_number_gives_the_same_the_reason_is_told(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        counts(**{"gate": PLAIN} | fields)


def test_a_method_whose_loss_counts_a_workers_load_needs_micro_batches() -> None:
    job = sparse(workers=2, min_workers=1)
    with pytest.raises(UserError, match="sparse_moe notices how a batch is divided"):
        worker_counts(job, method_of(job))
    job = sparse(workers=2, min_workers=1, parallel={"micro_batches": 2})
    assert worker_counts(job, method_of(job)) == (1, 2)


def test_a_loss_of_the_whole_batch_is_refused() -> None:
    content = {"name": "small", "kind": "train", "data": {"dataset": "digits"}, "method": "icl"}
    job = parse_job(content | {"workers": 2, "min_workers": 1}, "small.yaml")
    with pytest.raises(UserError, match=r"^min_workers = 1: a loss of icl is of the whole batch, "):
        worker_counts(job, method_of(job))


def test_more_at_least_than_at_most_is_refused() -> None:
    with pytest.raises(UserError, match="min_workers = 3 is more than workers = 2"):
        traditional(workers=2, min_workers=3)


def test_the_local_launcher_refuses_an_elastic_job() -> None:
    with pytest.raises(UserError, match=r"^min_workers = 1: --launcher local .* --set min_workers=null"):
        require_launcher("local", traditional(workers=2, min_workers=1))
    require_launcher("local", traditional(workers=2, min_workers=2))
