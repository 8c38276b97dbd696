"""Who sees which sample when: pure functions of integers, the same on every rank without communication.

Letters: N samples of a set, C classes, G samples of a global batch, R ranks, B = G / R.

Step b of an epoch takes positions [b G, (b + 1) G) of the epoch's order, and rank r every R-th of them from the r-th
on. The last batch is filled up with samples that are not `valid`. Where classes are sampled, an epoch still has N
positions, and some samples take several of them or none.
Only NumPy is imported here, so that the arithmetic can be tested and used anywhere.
"""

from __future__ import annotations

import math

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ORDER, _SHARDS, _DRAWS, _SPLIT, _CHOICE = (np.uint64(purpose) for purpose in range(1, 6))
CROPS, MIXES = np.uint64(16), np.uint64(17)
"""Purposes of random numbers: equal seeds give independent numbers to different purposes."""
_REPEAT_SHIFT, _REPEAT_BITS = np.uint64(40), np.uint64(24)
"""A sample's repeat is written above the bits of its number: no two (sample, repeat < 2^24) share a state."""


def splitmix64(values: np.ndarray | np.uint64) -> np.ndarray:
    """splitmix64 (Steele, Lea and Flood 2014) of uint64 `values`: a bijection that no NumPy version changes."""
    with np.errstate(over="ignore"):
        mixed = np.asarray(values, np.uint64) + _GOLDEN
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def _key(purpose: np.uint64, seed: int, epoch: int = 0) -> np.ndarray:
    return splitmix64(splitmix64(splitmix64(purpose) ^ np.uint64(seed)) ^ np.uint64(epoch))


def uniform(
    seed: int,
    epoch: int,
    samples: np.ndarray,
    draws: int,
    repeats: np.ndarray | None = None,
    purpose: np.uint64 = _DRAWS,
) -> np.ndarray:
    """Random numbers [n, draws] in [0, 1), float64; row i depends on (seed, epoch, samples[i], repeats[i]) alone.

    repeats [n]: which of its sample's copies in the epoch a row is: each copy has other numbers; None: the first, 0;
    purpose: each purpose has other numbers, too.
    """
    counters = np.arange(draws, dtype=np.uint64) * _GOLDEN
    states = np.asarray(samples, np.int64).astype(np.uint64)
    if repeats is not None:
        copies = repeats.astype(np.uint64)
        high = np.asarray(copies >> _REPEAT_BITS, np.uint64)  # the bits that the shift cuts off
        states = states ^ (copies << _REPEAT_SHIFT) ^ (splitmix64(high) * (high > 0).astype(np.uint64))
    rows = splitmix64(states ^ _key(purpose, seed, epoch))
    return (splitmix64(rows[:, None] + counters) >> np.uint64(11)) * 2.0**-53


def epoch_order(
    samples_count: int, seed: int, epoch: int, shard_of: np.ndarray | None = None, window_shards: int = 0
) -> np.ndarray:
    """The order in which an epoch visits its samples: a permutation of range(samples_count), int64.

    window_shards: 0 shuffles the whole epoch; with more (slow storage) the shards are shuffled, and then the samples
    inside each window of so many shards; shard_of [N]: each sample's shard, needed for windows.
    """
    random = splitmix64(np.arange(samples_count, dtype=np.uint64) ^ _key(_ORDER, seed, epoch))
    if not window_shards:
        return np.argsort(random, kind="stable")
    assert shard_of is not None and len(shard_of) == samples_count
    shards = np.arange(int(shard_of.max()) + 1)
    place = np.empty(len(shards), np.int64)
    place[np.argsort(splitmix64(shards.astype(np.uint64) ^ _key(_SHARDS, seed, epoch)), kind="stable")] = shards
    return np.lexsort((random, place[shard_of] // window_shards))


def sampled_order(
    labels: np.ndarray, sampling: str, seed: int, epoch: int, epochs: int
) -> tuple[np.ndarray, np.ndarray]:
    """An epoch of N positions in which classes are shown as `sampling` says: (samples [N], repeats [N]), int64.

    labels [N] >= 0: the samples' classes; epochs: those of the whole stage, for `progressive`; repeats: which of its
    sample's copies in this epoch a position is, from 0. The positions of a class go through its samples in a shuffled
    order, over and over: no sample comes a second time before all have come once. Then all positions are shuffled.
    """
    counts = np.bincount(labels)
    present = counts > 0
    positions = np.zeros_like(counts)
    positions[present] = largest_remainder(class_quotas(counts[present], sampling, epoch, epochs))
    random = splitmix64(np.arange(len(labels), dtype=np.uint64) ^ _key(_CHOICE, seed, epoch))
    shuffled = np.argsort(random)  # no two are equal: any sort gives the same
    narrow = labels.astype(np.min_scalar_type(len(counts)))  # integers of 16 bits sort in a tenth of the time, by radix
    by_class = shuffled[np.argsort(narrow[shuffled], kind="stable")]
    rounds, rest = np.divmod(positions, np.maximum(counts, 1))
    copies = np.repeat(rounds, counts) + (_places(counts) < np.repeat(rest, counts))
    order = epoch_order(len(labels), seed, epoch)
    return np.repeat(by_class, copies)[order], _places(copies)[order]


def _places(sizes: np.ndarray) -> np.ndarray:
    """0, 1, ... size - 1 for each of `sizes`, one after another, [sum of sizes]."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def occurrences(values: np.ndarray) -> np.ndarray:
    """How often each of `values` [n] has occurred before its place, [n]: 7 3 7 7 -> 0 0 1 2."""
    by_value = np.argsort(values, kind="stable")
    _, sizes = np.unique(values, return_counts=True)
    found = np.empty(len(values), np.int64)
    found[by_value] = _places(sizes)
    return found


def class_quotas(counts: np.ndarray, sampling: str, epoch: int, epochs: int) -> np.ndarray:
    """How many of N = sum(counts) positions each class of counts [C] > 0 gets in an epoch: [C], not yet whole numbers.

    In proportion to n^q (Kang et al. 2020, Eq 1): q = 1 for `instance`, 0 for `balanced`, 1/2 for `square_root`; for
    `progressive` (Eq 2) (1 - t/T) instance + t/T balanced, T the last of the epochs t = 0, 1, ...; a stage of one epoch
    is `instance`.
    """
    total = int(counts.sum())
    balanced = np.full(len(counts), total / len(counts))
    if sampling == "balanced":
        return balanced
    if sampling == "square_root":
        roots = np.sqrt(counts)
        return roots * (total / math.fsum(roots))  # fsum: the same last bit whatever the processor
    if sampling == "progressive":
        share = epoch / (epochs - 1) if epochs > 1 else 0.0
        return (1 - share) * counts + share * balanced
    assert sampling == "instance"
    return counts.astype(np.float64)


def largest_remainder(quotas: np.ndarray) -> np.ndarray:
    """Whole numbers [C] of the same sum as `quotas` [C]: rounded down, then one more for the largest remainders.

    Of equal remainders the first class comes first.
    """
    whole = np.floor(quotas).astype(np.int64)
    missing = round(math.fsum(quotas)) - int(whole.sum())
    whole[np.argsort(whole - quotas, kind="stable")[:missing]] += 1
    return whole


def steps_per_epoch(samples_count: int, global_batch: int) -> int:
    """Steps of one epoch: the last may hold fewer than `global_batch` valid samples."""
    return -(-samples_count // global_batch)


def rank_positions(step: int, global_batch: int, rank: int, ranks: int) -> np.ndarray:
    """The positions [B] of the epoch's order that `rank` of `ranks` takes at `step`; they may lie past the end."""
    assert global_batch % ranks == 0
    return step * global_batch + np.arange(rank, global_batch, ranks)


def rank_batch(order: np.ndarray, step: int, global_batch: int, rank: int, ranks: int) -> tuple[np.ndarray, np.ndarray]:
    """One rank's share of a global batch: (samples [B] int64, valid [B] bool).

    Positions past the end wrap around to the start of the order and are not valid.
    """
    positions = rank_positions(step, global_batch, rank, ranks)
    return order[positions % len(order)], positions < len(order)


def partner_positions(positions: np.ndarray, samples_count: int, global_batch: int) -> np.ndarray:
    """The position of each position's partner: half of its batch's valid samples further on, round the batch.

    A sample that is not valid is its own partner. Partners do not depend on the number of ranks, and every valid sample
    is a partner once.
    """
    start = positions // global_batch * global_batch
    valid = np.minimum(global_batch, samples_count - start)
    return np.where(positions < samples_count, start + (positions - start + valid // 2) % valid, positions)


def with_partners(own: np.ndarray, partners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a rank loads beside the positions `own` [B], so that their `partners` [B] are there.

    Returns the further positions, and where each partner is among `own` and then the further ones [B].
    """
    further = np.setdiff1d(partners, own)
    loaded = np.append(own, further)
    by_position = np.argsort(loaded)
    return further, by_position[np.searchsorted(loaded, partners, sorter=by_position)]


def divide(labels: np.ndarray, groups: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide a set into (rest, held), sorted sample numbers, with about `fraction` of every class in `held`.

    labels [N], groups [N]: samples of one group (a track) stay together; group -1 is a sample on its own. Every class
    with two groups or more has at least one on each side; a class of one group stays in `rest`.
    Raises ValueError where a group spans two classes.
    """
    numbers = np.arange(len(labels))
    unit_of = np.unique(np.where(groups < 0, -1 - numbers, groups), return_inverse=True)[1]
    first = np.full(int(unit_of.max(initial=-1)) + 1, len(labels))
    np.minimum.at(first, unit_of, numbers)
    if (torn := np.flatnonzero(labels != labels[first[unit_of]])).size:
        raise ValueError(f"group {groups[torn[0]]} holds samples of two classes: a split cannot be stratified")
    sizes, unit_labels = np.bincount(unit_of), labels[first]
    random = splitmix64(first.astype(np.uint64) ^ _key(_SPLIT, seed))
    held_unit = np.zeros(len(first), bool)
    for label in np.unique(labels):
        units = np.flatnonzero(unit_labels == label)
        held_unit[_held_units(units[np.argsort(random[units], kind="stable")], sizes, fraction)] = True
    held = held_unit[unit_of]
    return numbers[~held], numbers[held]


def limit(labels: np.ndarray, groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The sorted numbers of about `count` samples of a set: its share of every class, and of each at least one group.

    labels [N], groups [N]: as of `divide`, which divides the classes; a class of one group is kept whole, so that more
    than `count` may be left. Raises ValueError where a group spans two classes.
    """
    if count >= len(labels):
        return np.arange(len(labels))
    left_out, kept = divide(labels, groups, count / len(labels), seed)
    indivisible = left_out[~np.isin(labels[left_out], labels[kept])]
    return np.sort(np.concatenate([kept, indivisible]))


def _held_units(units: np.ndarray, sizes: np.ndarray, fraction: float) -> list[int]:
    """Those of one class's shuffled `units` to hold: as near to `fraction` of the samples as whole units come."""
    if len(units) < 2:
        return []
    target = fraction * sizes[units].sum()
    held: list[int] = []
    count = 0
    for unit in units.tolist():
        if len(held) < len(units) - 1 and count + sizes[unit] / 2 <= target:
            held.append(unit)
            count += sizes[unit]
    return held or [int(units[0])]
