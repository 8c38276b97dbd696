"""The bytes that ranks exchange for experts, as `show` tells them: counted in a forward pass, compared by hand."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from small_jobs import dfcp

from moe_dist.job import Job, parse_job
from moe_dist.methods.registry import method_class
from moe_dist.run.exchanged import bytes_between_ranks
from moe_dist.run.preview import expected_info, preview
from tests.methods.gmm_moe.small_gmm_moe import job as gmm_moe

SAMPLES = 24


def bytes_of(job: Job, ranks: int) -> int:
    assert job.method is not None
    return bytes_between_ranks(method_class(job.method.name)(job.method, expected_info(job)), 0, ranks, SAMPLES)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_of_experts_that_are_summed_one_output_comes_from_every_rank(ranks: int) -> None:
    """Two taps, 4 x 4 places and one: 8 features and 3 weights a place go, 8 features a place come back, and their
    gradients the other way."""
    places, others = 16 + 1, ranks - 1
    expected = 4 * SAMPLES * others * 2 * ((8 + 3) * places + 8 * places)
    assert bytes_of(gmm_moe(), ranks) == expected


def branches(**network: Any) -> Job:
    method = {"name": "icl", "network": {"width": 4} | network}
    data = {"dataset": "digits", "image_size": 16}
    return parse_job({"name": "x", "kind": "train", "data": data, "method": method}, "x.yaml")


def test_branches_get_the_shared_maps_and_give_features_and_two_sets_of_logits() -> None:
    """Three on two ranks: maps of 4 x 16 x 16 and 8 x 8 x 8, 16 features. Not aligned, they get the second map."""
    maps, outputs = 4 * 256 + 8 * 64, 3 * (16 + 2 * 10)
    assert bytes_of(branches(), 2) == 4 * SAMPLES * 2 * (maps + outputs // 2)
    assert bytes_of(branches(aligned=False), 2) == 4 * SAMPLES * 2 * (8 * 64 + outputs // 2)


def test_a_module_before_the_branches_is_counted_too() -> None:
    """Two experts of four features on the second map, before what the branches move."""
    module = 4 * SAMPLES * 2 * 64 * ((4 + 2) + 4)
    assert bytes_of(branches(module={"experts": 2, "dim": 4}), 2) == bytes_of(branches(), 2) + module


def test_images_that_experts_see_have_no_gradient() -> None:
    """Ten experts of one logit: an image goes, logits come back and their gradients go."""
    job = dfcp()
    pixels = 3 * job.data.image_size**2
    assert bytes_of(job, 2) == 4 * SAMPLES * (pixels + 2 * 10 // 2)


def test_show_prints_them() -> None:
    shown = io.StringIO()
    preview(gmm_moe(workers=2, parallel={"expert": 2}), Console(file=shown, width=200))
    moved = 4 * SAMPLES * 2 * 19 * 17 / 2**20
    assert f"{moved:.2f} MiB exchanged between ranks in a step" in " ".join(shown.getvalue().split())
