"""A repair leaves out what cannot be read, says so, keeps the old index, and never writes a shard."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import write_image_folder

from moe_dist.data.shards.build.build import build_shards
from moe_dist.data.shards.index import read_index
from moe_dist.data.shards.inspect.check import check_shards
from moe_dist.data.shards.inspect.repair import repair_shards
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.errors import UserError


def change_image(split: Path, sample: int) -> str:
    """Flip a bit in the middle of an image; the shard and member it lies in."""
    opened = ShardSet.open(split)
    where = opened.where(sample)
    row = read_index(split).rows[sample]
    path = Path(where.partition(": ")[0])
    content = bytearray(path.read_bytes())
    content[int(row["offset"]) + int(row["length"]) // 2] ^= 1
    path.write_bytes(content)
    return f"{path.parent.name}/{path.name}: {where.partition(': ')[2]}"


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.tar")}


def test_bad_samples_are_left_out_and_named(shards: Path):
    train = shards / "train"
    before = ShardSet.open(train)
    images = [before.read(sample) for sample in range(24)]
    broken = [change_image(train, sample) for sample in (3, 12, 23)]
    damaged = shard_bytes(shards)
    assert check_shards(shards) != []
    (repaired,) = repair_shards(shards)
    assert (repaired.kept, repaired.dropped) == (21, 3)
    assert repaired.reasons == [f"{where}: changed or cut short since it was indexed" for where in broken]
    assert check_shards(shards) == []
    assert shard_bytes(shards) == damaged
    opened = ShardSet.open(train)
    assert [opened.read(sample) for sample in range(21)] == [
        image for sample, image in enumerate(images) if sample not in (3, 12, 23)
    ]
    content = json.loads((train / "index.json").read_text())
    assert content["samples"] == 21 and content["image_kinds"] == {"png": 21}
    assert [shard["samples"] for shard in content["shards"]] == [9, 9, 3]


def test_the_old_index_is_kept_and_brings_the_old_state_back(shards: Path):
    train = shards / "train"
    old = [(train / name).read_bytes() for name in ("index.json", "index.npy")]
    change_image(train, 3)
    repair_shards(shards)
    assert [(train / f"{name}.before-repair").read_bytes() for name in ("index.json", "index.npy")] == old
    first_repair = (train / "index.json").read_bytes()
    change_image(train, 3)
    (repaired,) = repair_shards(shards)
    assert (repaired.kept, repaired.dropped) == (22, 1)
    assert (train / "index.json.before-repair-2").read_bytes() == first_repair
    assert (train / "index.json.before-repair").read_bytes() == old[0]
    assert check_shards(shards) == []


def test_shards_without_damage_are_left_alone(shards: Path):
    before = {path: path.stat().st_mtime_ns for path in shards.rglob("*")}
    assert repair_shards(shards) == []
    assert {path: path.stat().st_mtime_ns for path in shards.rglob("*")} == before


def test_a_cut_shard_keeps_what_it_still_has(shards: Path):
    train = shards / "train"
    path = train / "train-000001.tar"
    rows = read_index(train).rows
    end = int(rows["offset"][16]) + 10  # inside the seventh of its ten images
    path.write_bytes(path.read_bytes()[:end])
    (repaired,) = repair_shards(shards)
    assert (repaired.kept, repaired.dropped) == (20, 4)
    assert check_shards(shards) == []
    assert ShardSet.open(train).labels.tolist() == np.delete(rows["label"], [16, 17, 18, 19]).tolist()


def test_a_damaged_header_loses_no_image(shards: Path):
    """A reader of tars would stop at it; the index leads past it."""
    train = shards / "train"
    path = train / "train-000001.tar"
    content = bytearray(path.read_bytes())
    content[int(read_index(train).rows["offset"][14]) - 512 + 100] ^= 1
    path.write_bytes(content)
    (repaired,) = repair_shards(shards)
    assert (repaired.kept, repaired.dropped) == (24, 0)
    assert check_shards(shards) == []


def test_a_missing_shard_is_left_out_and_the_others_numbered_anew(shards: Path):
    train = shards / "train"
    labels = read_index(train).rows["label"].tolist()
    (train / "train-000001.tar").unlink()
    (repaired,) = repair_shards(shards)
    assert (repaired.kept, repaired.dropped) == (14, 10)
    assert repaired.reasons == ["train/train-000001.tar: 10 samples: the shard is missing"]
    assert check_shards(shards) == []
    opened = ShardSet.open(train)
    assert opened.labels.tolist() == labels[:10] + labels[20:]
    assert opened.shard_of.tolist() == [0] * 10 + [1] * 4
    assert len(opened.read(13)) > 0


def test_a_key_that_two_shards_hold_is_kept_once(shards: Path):
    """The second shard is the first again: its samples are those of the index no more, and its keys are taken."""
    shutil.copy(shards / "train/train-000000.tar", shards / "train/train-000001.tar")
    (repaired,) = repair_shards(shards)
    assert (repaired.kept, repaired.dropped) == (14, 10)
    assert check_shards(shards) == []


def test_a_class_is_not_dropped(tmp_path: Path):
    source = write_image_folder(tmp_path / "pictures", train=4, test=2)
    build_shards("image_folder", source, tmp_path / "shards")
    train = tmp_path / "shards/train"
    for sample in np.flatnonzero(read_index(train).rows["label"] == 1).tolist():
        change_image(train, sample)
    before = (train / "index.json").read_bytes()
    with pytest.raises(UserError, match=r"train: no sample of class bee can be read.*build the shards again"):
        repair_shards(tmp_path / "shards")
    assert (train / "index.json").read_bytes() == before
    assert not (train / "index.json.before-repair").exists()


def test_damage_after_a_repair_is_found(shards: Path):
    change_image(shards / "train", 3)
    repair_shards(shards)
    where = change_image(shards / "train", 0)
    problems = check_shards(shards)
    shard, _, member = where.partition(": ")
    assert any(problem.startswith(f"{shard}: changed since it was indexed") for problem in problems)
    (repaired,) = repair_shards(shards)
    assert repaired.reasons == [f"{where}: changed or cut short since it was indexed"] and member.endswith(".png")


def test_an_index_that_cannot_be_read_is_not_repaired(shards: Path):
    (shards / "test/index.npy").write_bytes(b"")
    with pytest.raises(UserError, match="test: the index cannot be read"):
        repair_shards(shards)


def test_a_url_is_not_repaired():
    with pytest.raises(UserError, match="only a folder can be repaired"):
        repair_shards("s3://bucket/set")


def test_a_folder_that_cannot_be_written_to_is_told_before_shards_are_read(
    shards: Path, monkeypatch: pytest.MonkeyPatch
):
    """A stub, because root may write to any folder."""
    change_image(shards / "train", 3)

    def refusing(dir: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    def reading(*_: object) -> None:
        raise AssertionError("shards were read first")

    monkeypatch.setattr("tempfile.TemporaryFile", refusing)
    monkeypatch.setattr("moe_dist.data.shards.inspect.repair.shard_problems", reading)
    with pytest.raises(UserError, match=r"train: a new index cannot be written there \(Permission denied\); make it"):
        repair_shards(shards)


def test_a_shard_that_cannot_be_opened_is_named(shards: Path, monkeypatch: pytest.MonkeyPatch):
    opened = Path.open

    def refusing(path: Path, *options: str, **named: str) -> object:
        if path.name == "train-000001.tar":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *options, **named)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(UserError, match=r"train-000001.tar: cannot be read \(Permission denied\); make it readable"):
        repair_shards(shards)
    (problem,) = check_shards(shards)
    assert "train-000001.tar: cannot be read (Permission denied)" in problem
