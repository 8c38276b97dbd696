"""The order of samples: known numbers, hand-worked shares of ranks, and properties."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moe_dist.data.order import (
    class_quotas,
    divide,
    epoch_order,
    largest_remainder,
    limit,
    occurrences,
    rank_batch,
    rank_positions,
    sampled_order,
    splitmix64,
    steps_per_epoch,
    uniform,
)

GOLDEN = 0x9E3779B97F4A7C15
seeds = st.integers(0, 2**31 - 1)


def reference_splitmix64(state: int) -> int:
    """One output of the generator as its authors print it, in Python's whole numbers."""
    z = (state + GOLDEN) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_splitmix64_gives_the_published_first_outputs_from_seed_0():
    states = np.array([0, GOLDEN, 2 * GOLDEN % 2**64], np.uint64)
    assert [int(value) for value in splitmix64(states)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_splitmix64_is_the_one_its_authors_print(values: list[int]):
    expected = [reference_splitmix64(value) for value in values]
    assert [int(value) for value in splitmix64(np.array(values, np.uint64))] == expected


def test_only_numpy_is_imported():
    program = (
        "import sys; before = set(sys.modules); import moe_dist.data.order;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split() if not name.startswith("_")] == ["moe_dist", "numpy"]


@given(st.integers(1, 300), seeds, st.integers(0, 50))
def test_an_epoch_visits_every_sample_once(samples: int, seed: int, epoch: int):
    assert np.array_equal(np.sort(epoch_order(samples, seed, epoch)), np.arange(samples))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(epoch_order(50, seed, epoch).tolist()) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_every_place_of_an_epoch_is_equally_likely():
    """Chi-square over 10 places of sample 0 in 2,000 epochs; the 0.999 quantile for 9 degrees of freedom is 27.9."""
    places = [int(np.flatnonzero(epoch_order(10, 3, epoch) == 0)[0]) for epoch in range(2000)]
    counts = np.bincount(places, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 27.9


@given(st.integers(1, 8), st.integers(1, 12), st.integers(1, 4), seeds)
def test_a_window_of_shards_is_finished_before_the_next_begins(shards: int, per_shard: int, window: int, seed: int):
    shard_of = np.repeat(np.arange(shards), per_shard)
    order = epoch_order(len(shard_of), seed, 0, shard_of, window)
    assert np.array_equal(np.sort(order), np.arange(len(shard_of)))
    visited = shard_of[order]
    for start in range(0, len(order), window * per_shard):
        inside = visited[start : start + window * per_shard]
        assert len(set(inside.tolist())) == len(inside) // per_shard  # whole shards, none of another window


def test_ranks_divide_a_batch_and_the_last_is_padded():
    """N = 7, G = 4, W = 2. Step 1 takes places 4 to 7 of the order: rank 0 places 4 and 6, rank 1 places 5 and 7.

    Place 7 is past the end and wraps around to place 0.
    """
    order = np.array([3, 1, 4, 0, 5, 2, 6])
    assert steps_per_epoch(7, 4) == 2
    assert rank_positions(1, 4, 1, 2).tolist() == [5, 7]
    samples, valid = rank_batch(order, 1, 4, 0, 2)
    assert (samples.tolist(), valid.tolist()) == ([5, 6], [True, True])
    samples, valid = rank_batch(order, 1, 4, 1, 2)
    assert (samples.tolist(), valid.tolist()) == ([2, 3], [True, False])


@given(seeds, st.integers(0, 9), st.lists(st.integers(0, 10**6), min_size=1, max_size=30, unique=True))
def test_a_sample_draws_the_same_numbers_in_any_company(seed: int, epoch: int, samples: list[int]):
    together = uniform(seed, epoch, np.array(samples), 5)
    alone = np.concatenate([uniform(seed, epoch, np.array([sample]), 5) for sample in samples])
    assert np.array_equal(together, alone)
    assert together.min() >= 0 and together.max() < 1


def test_draws_are_uniform_and_independent():
    """Means of 40,000 uniform numbers have standard error 0.29 / 200 = 0.0014; correlations 1 / 200 = 0.005."""
    draws = uniform(11, 2, np.arange(40_000), 4)
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 5 * 0.0015
    assert np.abs(draws.var(axis=0) - 1 / 12).max() < 0.002
    others = np.column_stack([draws, uniform(11, 3, np.arange(40_000), 1), uniform(12, 2, np.arange(40_000), 1)])
    correlations = np.corrcoef(others, rowvar=False) - np.eye(6)
    assert np.abs(correlations).max() < 5 * 0.005


def test_copies_of_a_sample_draw_numbers_of_their_own_and_the_first_those_it_had():
    samples = np.array([5, 5, 5, 8])
    draws = uniform(1, 2, samples, 3, repeats=np.array([0, 1, 2, 0]))
    plain = uniform(1, 2, samples, 3)
    assert np.array_equal(draws[[0, 3]], plain[[0, 3]])
    assert len(np.unique(draws[:3])) == 9


@pytest.mark.parametrize(
    ("sampling", "epoch", "positions"),
    [
        ("instance", 0, [6, 2, 1]),
        ("balanced", 0, [3, 3, 3]),
        # roots 2.449, 1.414, 1 of 4.864: 4.532, 2.617, 1.850 of nine places; two more to the remainders .850 and .617
        ("square_root", 0, [4, 3, 2]),
        ("progressive", 0, [6, 2, 1]),
        # half-way of three epochs: (6 + 3) / 2 = 4.5, 2.5, 2; the one more to the first of equal remainders
        ("progressive", 1, [5, 2, 2]),
        ("progressive", 2, [3, 3, 3]),
    ],
)
def test_positions_of_classes_of_6_2_and_1_images(sampling: str, epoch: int, positions: list[int]):
    labels = np.array([0, 0, 2, 0, 1, 0, 0, 1, 0])
    samples, repeats = sampled_order(labels, sampling, seed=3, epoch=epoch, epochs=3)
    assert np.bincount(labels[samples]).tolist() == positions
    assert repeats.max() == {"instance": 0, "balanced": 2, "square_root": 1, "progressive": epoch}[sampling]


def test_the_only_epoch_of_a_progressive_stage_shows_every_image_once():
    samples, repeats = sampled_order(np.array([0, 0, 0, 1]), "progressive", seed=0, epoch=0, epochs=1)
    assert sorted(samples.tolist()) == [0, 1, 2, 3] and not repeats.any()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 6))
def test_quotas_of_every_kind_are_those_of_exact_fractions(counts: list[int], epoch: int):
    total, classes = sum(counts), len(counts)
    share = Fraction(epoch, 6)
    expected = {
        "instance": [Fraction(count) for count in counts],
        "balanced": [Fraction(total, classes)] * classes,
        "progressive": [(1 - share) * count + share * Fraction(total, classes) for count in counts],
    }
    for sampling, quotas in expected.items():
        found = class_quotas(np.array(counts), sampling, epoch, 7)
        assert np.allclose(found, [float(quota) for quota in quotas], rtol=1e-14)
    roots = class_quotas(np.array(counts), "square_root", epoch, 7)
    assert np.isclose(roots.sum(), total) and np.allclose((roots / roots[0]) ** 2, np.array(counts) / counts[0])


@example([32, 48], 7)  # 4/7, 6/7 and 4/7
@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(1, 9))
def test_largest_remainder_is_that_of_exact_fractions(tenths: list[int], denominator: int):
    """Against the rule in words: cut, then one more to whoever lost most, the first of equals first."""
    exact = [Fraction(value, denominator) for value in tenths]
    exact.append(-sum(exact) % 1)  # a whole sum
    cut = [int(quota) for quota in exact]
    by_loss = sorted(range(len(exact)), key=lambda c: (cut[c] - exact[c], c))
    for c in by_loss[: int(sum(exact)) - sum(cut)]:
        cut[c] += 1
    found = largest_remainder(np.array([float(quota) for quota in exact]))
    assert found.sum() == sum(exact)
    remainders = {exact[c] % 1 for c in range(len(exact))}  # equal ones are not quite equal as floats
    if len(remainders) == len(exact):
        assert found.tolist() == cut


samplings = st.sampled_from(["instance", "balanced", "square_root", "progressive"])


@settings(max_examples=200)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=80), samplings, seeds, st.integers(0, 4))
def test_a_sampled_epoch_goes_round_the_images_of_a_class(labels: list[int], sampling: str, seed: int, epoch: int):
    of = np.array(labels)
    samples, repeats = sampled_order(of, sampling, seed, epoch, epochs=5)
    assert len(samples) == len(of)
    copies = np.bincount(samples, minlength=len(of))
    for label in set(labels):
        assert np.ptp(copies[of == label]) <= 1, "no image again before all of its class were shown"
    for sample in set(samples.tolist()):
        assert sorted(repeats[samples == sample].tolist()) == list(range(copies[sample]))
    if sampling == "instance":
        assert np.array_equal(np.sort(samples), np.arange(len(of)))


def test_every_image_of_a_class_is_shown_equally_often_over_many_epochs():
    """Ten images share the 6 places of their class in an epoch of 12: chi-square over 9 degrees of freedom < 27.9."""
    labels = np.array([0] * 10 + [1] * 2)
    shown = np.zeros(12)
    for epoch in range(500):
        samples, _ = sampled_order(labels, "balanced", 7, epoch, epochs=500)
        shown += np.bincount(samples, minlength=12)
    assert shown[:10].sum() == 500 * 6 == shown[10:].sum()
    assert ((shown[:10] - 300) ** 2 / 300).sum() < 27.9


def test_sampled_epochs_and_seeds_have_orders_of_their_own():
    labels = np.arange(40) % 3
    orders = {
        tuple(sampled_order(labels, "balanced", seed, epoch, 4)[0].tolist()) for seed in range(3) for epoch in range(4)
    }
    assert len(orders) == 12


@st.composite
def grouped_labels(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels of up to 4 classes, each of several groups of 1 to 6 samples, some samples on their own; shuffled."""
    labels, groups = [], []
    for label in range(draw(st.integers(1, 4))):
        for size in draw(st.lists(st.integers(1, 6), min_size=1, max_size=8)):
            alone = size == 1 and draw(st.booleans())
            groups += [-1 if alone else 100 * label + len(groups)] * size
            labels += [label] * size
    shuffled = draw(st.permutations(range(len(labels))))
    return np.array(labels)[shuffled], np.array(groups)[shuffled]


@settings(max_examples=200)
@given(grouped_labels(), st.floats(0.05, 0.95), seeds)
def test_a_split_keeps_groups_whole_and_classes_on_both_sides(data, fraction: float, seed: int):
    labels, groups = data
    rest, held = divide(labels, groups, fraction, seed)
    assert np.array_equal(np.sort(np.concatenate([rest, held])), np.arange(len(labels)))
    assert np.array_equal(rest, np.sort(rest)) and np.array_equal(held, np.sort(held))
    assert not (set(groups[rest].tolist()) & set(groups[held].tolist()) - {-1})
    for label in set(labels.tolist()):
        of_class = labels == label
        units = len(set(groups[of_class & (groups >= 0)].tolist())) + int((of_class & (groups < 0)).sum())
        assert (labels[rest] == label).any()
        assert (labels[held] == label).any() == (units > 1)


def test_a_split_of_single_samples_is_stratified_to_the_nearest_sample():
    """Ten per cent of classes of 50, 100 and 14 samples: 5, 10 and 1.4, that is 1."""
    labels = np.repeat([0, 1, 2], [50, 100, 14])
    _, held = divide(labels, np.full(164, -1), 0.1, seed=4)
    assert np.bincount(labels[held]).tolist() == [5, 10, 1]


def test_splits_of_other_seeds_hold_other_samples():
    labels = np.zeros(100, np.int64)
    held = {tuple(divide(labels, np.full(100, -1), 0.2, seed)[1].tolist()) for seed in range(5)}
    assert len(held) == 5


def test_a_group_of_two_classes_is_refused():
    with pytest.raises(ValueError, match="group 7 holds samples of two classes"):
        divide(np.array([0, 1, 1]), np.array([7, 7, -1]), 0.5, 0)


def test_a_limit_keeps_a_class_of_one_group():
    """A third of three classes of 30, of which the last is one track, keeps it whole: 10, 10 and 30."""
    labels = np.repeat([0, 1, 2], 30)
    groups = np.where(labels == 2, 7, -1)
    assert np.bincount(labels[limit(labels, groups, 30, seed=3)]).tolist() == [10, 10, 30]


@settings(max_examples=200)
@given(grouped_labels(), st.integers(1, 50), seeds)
def test_a_limit_loses_no_class_and_is_a_split_where_that_keeps_all(data, count: int, seed: int):
    labels, groups = data
    kept = limit(labels, groups, count, seed)
    assert np.array_equal(kept, np.unique(kept)) and set(labels[kept]) == set(labels)
    left_out = np.setdiff1d(np.arange(len(labels)), kept)
    assert not (set(groups[kept].tolist()) & set(groups[left_out].tolist()) - {-1})
    if count >= len(labels):
        assert len(kept) == len(labels)
    else:
        held = divide(labels, groups, count / len(labels), seed)[1]
        assert set(held) <= set(kept)
        assert set(labels[np.setdiff1d(kept, held)]).isdisjoint(labels[held])


def test_occurrences_by_hand():
    assert occurrences(np.array([7, 3, 7, 7, 3])).tolist() == [0, 0, 1, 2, 1]
    assert occurrences(np.array([], np.int64)).tolist() == []


@given(st.lists(st.integers(-1, 5), max_size=30))
def test_occurrences_count_what_came_before(values: list[int]):
    expected = [values[:place].count(value) for place, value in enumerate(values)]
    assert occurrences(np.array(values, np.int64)).tolist() == expected


def test_repeats_of_any_size_have_numbers_of_their_own():
    """Also beyond the 24 bits that lie above a sample's number."""
    repeats = np.array([0, 1, 2**24 - 1, 2**24, 2**24 + 1, 2**40, 2**40 + 1, 2**41])
    draws = uniform(3, 0, np.full(len(repeats), 7), 2, repeats)
    assert len({tuple(row) for row in draws.tolist()}) == len(repeats)
