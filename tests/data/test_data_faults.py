"""The faults that plain WebDataset passes over, one by one: each is named when shards are checked or read.

Faults of remote storage are in the tests of the store and its cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import encode, gradient, write_tar

from moe_dist.data.bad_samples import BadSamples
from moe_dist.data.batch import TrainingSet
from moe_dist.data.opened.images import open_images
from moe_dist.data.shards.index import Index, ShardInfo, read_index, write_index
from moe_dist.data.shards.inspect.check import check_shards
from moe_dist.data.shards.scan import scan_shard
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.data.stream.stream import Stream
from moe_dist.errors import UserError
from moe_dist.files import file_sha256
from moe_dist.settings.data import DataConfig

Members = list[tuple[str, bytes]]
SHARD = "train-000000.tar"


def sample(key: str, label: str = "0", shade: int = 0) -> Members:
    return [(f"{key}.cls", label.encode()), (f"{key}.png", encode(gradient(8, 8, shade), "PNG"))]


GOOD = [*sample("a", "0", 10), *sample("b", "1", 20), *sample("c", "0", 30)]


def indexed(folder: Path, members: Members) -> Path:
    """A split of one shard of `members`, its index made of the samples a scan finds good."""
    folder.mkdir()
    path = write_tar(folder / SHARD, members)
    scan = scan_shard(path, 0, classes=2)
    info = ShardInfo(SHARD, len(scan.keys), path.stat().st_size, file_sha256(path))
    write_index(folder, Index("by_hand", "train", ("ant", "bee"), (info,), scan.rows, dict(scan.image_kinds)))
    return folder


def stream_all(folder: Path, bad_samples: BadSamples) -> list[int]:
    """The samples of one epoch that weigh something."""
    shards = ShardSet.open(folder)
    config = DataConfig(image_size=8, decode="each_time")
    images = open_images(shards, config, folder, bad_samples)
    everything = TrainingSet(np.arange(len(shards)), shards.labels)
    stream = Stream(images, everything, config, seed=0, global_batch=2, rank=0, ranks=1)
    return sorted(int(number) for batch in stream.epoch() for number in batch.samples[batch.weight > 0])


@pytest.mark.parametrize(
    ("fault", "members", "problem"),
    [
        ("duplicate keys, apart", [*sample("a"), *GOOD[2:], *sample("a", "1")], "a: the key occurs twice"),
        ("duplicate keys, side by side", [*sample("a"), *GOOD], "a: a member occurs twice"),
        ("dotted names", [*sample("x.1"), *GOOD], "x.1.png: not a member name of a shard"),
        ("an absolute name", [*sample("/etc/x"), *GOOD], "/etc/x.png: not a member name of a shard"),
        ("a name that leads out", [*sample("../x"), *GOOD], "../x.png: not a member name of a shard"),
        ("a name that leads out and in", [*sample("x/../y"), *GOOD], "x/../y.png: not a member name of a shard"),
        ("label -1", [*sample("x", "-1"), *GOOD], "x: label -1 is outside 0 to 1"),
        ("label 99999", [*sample("x", "99999"), *GOOD], "x: label 99999 is outside 0 to 1"),
        ("label cat", [*sample("x", "cat"), *GOOD], "x: label b'cat' is not a whole number"),
        ("an empty shard", [], "the shard is empty"),
    ],
)
def test_a_fault_in_what_a_shard_holds_is_named_and_never_indexed(
    tmp_path: Path, fault: str, members: Members, problem: str
):
    folder = indexed(tmp_path / "train", members)
    assert f"train/{SHARD}: {problem}" in check_shards(folder), fault
    assert set(read_index(folder).rows["label"].tolist()) <= {0, 1}


def cut_in_the_middle(shard: bytes) -> bytes:
    return shard[: len(shard) // 2]


def bit_flipped_in_a_picture(shard: bytes) -> bytes:
    place = shard.index(b"IDAT", shard.index(b"b.png")) + 8
    return shard[:place] + bytes([shard[place] ^ 1]) + shard[place + 1 :]


def bad_header_at_a_sample_boundary(shard: bytes) -> bytes:
    place = shard.index(b"b.cls") + 148  # of the checksum
    return shard[:place] + b"!" + shard[place + 1 :]


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (cut_in_the_middle, "cut short"),
        (bit_flipped_in_a_picture, "b: damaged image"),
        (bad_header_at_a_sample_boundary, "a member's header cannot be read"),
    ],
)
def test_damage_after_indexing_is_named_by_the_check(tmp_path: Path, fault: Callable[[bytes], bytes], problem: str):
    folder = indexed(tmp_path / "train", GOOD)
    (folder / SHARD).write_bytes(fault((folder / SHARD).read_bytes()))
    problems = check_shards(folder)
    assert any(found.startswith(f"train/{SHARD}: ") and problem in found for found in problems), problems
    assert f"train/{SHARD}: changed since it was indexed (its sha256 is another)" in problems


def test_a_shard_cut_short_is_refused_when_it_is_opened(tmp_path: Path):
    folder = indexed(tmp_path / "train", GOOD)
    (folder / SHARD).write_bytes(cut_in_the_middle((folder / SHARD).read_bytes()))
    with pytest.raises(UserError, match=rf"{SHARD}: has \d+ bytes, the index says \d+"):
        ShardSet.open(folder)


def test_a_bit_flip_is_refused_or_left_out_and_named(tmp_path: Path):
    folder = indexed(tmp_path / "train", GOOD)
    (folder / SHARD).write_bytes(bit_flipped_in_a_picture((folder / SHARD).read_bytes()))
    with pytest.raises(UserError, match=rf"{SHARD}: b.png: changed or cut short"):
        stream_all(folder, BadSamples(limit=None))
    skipping = BadSamples(limit=1)
    assert stream_all(folder, skipping) == [0, 2]
    assert [sentence.split(": ")[1] for sentence in skipping.sentences()] == ["b.png"]


def test_a_bad_header_loses_no_sample_that_the_index_knows(tmp_path: Path):
    """Where tarfile and WebDataset would end the shard in silence."""
    folder = indexed(tmp_path / "train", GOOD)
    (folder / SHARD).write_bytes(bad_header_at_a_sample_boundary((folder / SHARD).read_bytes()))
    assert stream_all(folder, BadSamples(limit=None)) == [0, 1, 2]


def test_a_vanished_shard_is_refused_when_it_is_opened(tmp_path: Path):
    folder = indexed(tmp_path / "train", GOOD)
    (folder / SHARD).unlink()
    with pytest.raises(UserError, match=f"{SHARD}: the shard is missing"):
        ShardSet.open(folder)
    assert check_shards(folder) == [f"train/{SHARD}: the shard is missing"]


def test_a_shard_that_vanishes_under_a_run_ends_it_or_is_counted_sample_by_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = indexed(tmp_path / "train", GOOD)
    opened = ShardSet.open(folder)
    monkeypatch.setattr(ShardSet, "open", lambda folder: opened)
    (folder / SHARD).unlink()
    with pytest.raises(UserError, match=rf"{SHARD}: byte \d+: cannot be read \(No such file or directory\)"):
        stream_all(folder, BadSamples(limit=None))
    skipping = BadSamples(limit=3)
    assert stream_all(folder, skipping) == [] and len(skipping.sentences()) == 3
    with pytest.raises(UserError, match=r"3 bad samples are more than data.bad_samples_limit = 2"):
        stream_all(folder, BadSamples(limit=2))


def test_a_label_changed_in_the_index_is_refused(tmp_path: Path):
    """Index files that agree with each other, and hold a label that is none."""
    folder = indexed(tmp_path / "train", GOOD)
    index = read_index(folder)
    rows = index.rows.copy()
    for label in (-2, 99999):  # -1 is an image without a label
        rows["label"][1] = label
        changed = Index("by_hand", "train", index.class_names, index.shards, rows, index.image_kinds)
        (folder / "index.npy").unlink()
        np.save(folder / "index.npy", rows)
        content = json.loads((folder / "index.json").read_text()) | {"rows_sha256": changed.digest}
        (folder / "index.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=f"sample 1: label {label} is outside 0 to 1"):
            ShardSet.open(folder)
