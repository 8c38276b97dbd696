"""benchmarks/step_time.py, the formula of docs/scaling.md: hand-worked seconds."""

from __future__ import annotations

import pytest

from benchmarks.step_time import Exchange, Layout, Line, Link, Work, ring_bytes, step_seconds


def test_a_line_through_two_points() -> None:
    """1 s for 10 and 3 s for 30: nothing fixed, 0.1 s each."""
    assert Line.through((10, 1.0), (30, 3.0)) == Line(pytest.approx(0), pytest.approx(0.1))


def test_noise_makes_no_line_fall() -> None:
    assert Line.through((10, 2.0), (30, 1.0)) == Line(2.0, 0.0)


def test_a_link_through_two_sizes_of_messages() -> None:
    """0.01 s for 0 MB and 0.03 s for 1 MB: 0.01 s a call, 1 MB in 0.02 s."""
    link = Link.through((0, 0.01), (1e6, 0.03))
    assert link == Link(pytest.approx(0.01), pytest.approx(50e6))
    assert link.throttled(10e6) == Link(link.latency, 10e6)
    assert link.throttled(90e6) == link


def test_a_step_of_four_ranks_in_two_groups() -> None:
    """100 samples, 25 a rank: dense 0.1 + 25 x 0.01 = 0.35; experts of the group's 50 samples, 0.2 + 50 x 0.02 = 1.2,
    of which the busiest rank has 0.6: 0.72; the slowest is a tenth behind; alone 0.5; 3 calls of 0.001 s and 2 MB at
    1 MB/s: 2.003."""
    seconds = step_seconds(
        Work(Line(0.1, 0.01), Line(0.2, 0.02), alone=0.5, waiting=0.1),
        Layout(ranks=4, group=2),
        100,
        busiest=0.6,
        exchanges=[Exchange("all_to_all", 3, 2e6)],
        links={"all_to_all": Link(0.001, 1e6)},
    )
    assert seconds == pytest.approx(1.1 * (0.35 + 0.72) + 0.5 + 2.003)


def test_a_ring_sends_each_half_to_the_neighbour() -> None:
    assert [ring_bytes(ranks, 100) for ranks in (1, 2, 4)] == [0, 100, 150]
