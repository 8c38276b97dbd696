"""Opened shards: what plain WebDataset reads is what the index reads; damage is refused with its place."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import webdataset
from listed import build_listed, picture

from moe_dist.data.datasets.catalog import open_contents
from moe_dist.data.datasets.samples import Sample
from moe_dist.data.shards.build.build import build_shards
from moe_dist.data.shards.index import ROW, read_index, rows_digest
from moe_dist.data.shards.inspect.check import check_shards
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.errors import UserError


def test_webdataset_reads_back_what_the_dataset_gave(image_folder: Path, shards: Path):
    contents = open_contents("image_folder", image_folder)
    given = [contents.sample("train", number) for number in range(24)]
    expected = {sample.key: (sample.image, str(sample.label).encode()) for sample in given}
    paths = sorted(str(path) for path in (shards / "train").glob("*.tar"))
    assert [Path(path).name for path in paths] == [f"train-{number:06d}.tar" for number in range(3)]
    found = {s["__key__"]: (s["png"], s["cls"]) for s in webdataset.WebDataset(paths, shardshuffle=False)}
    assert found == expected


def test_a_shard_set_reads_what_webdataset_reads(shards: Path):
    opened = ShardSet.open(shards / "train")
    paths = sorted(str(path) for path in (shards / "train").glob("*.tar"))
    plain = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [opened.read(sample) for sample in range(len(opened))] == [sample["png"] for sample in plain]
    assert opened.labels.tolist() == [int(sample["cls"]) for sample in plain]
    assert opened.shard_of.tolist() == [0] * 10 + [1] * 10 + [2] * 4
    assert opened.class_names == ("ant", "bee", "cat")
    assert (opened.groups == -1).all() and (opened.rois == -1).all()


def test_tracks_and_regions_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    samples = [Sample("a", 0, picture(), "png", 4, (1, 2, 9, 8)), Sample("b", 1, picture(), "png")]
    build_listed(monkeypatch, tmp_path / "out", samples)
    opened = ShardSet.open(tmp_path / "out/train")
    found = {label: (group, roi) for label, group, roi in zip(opened.labels, opened.groups, opened.rois.tolist())}
    assert found == {0: (4, [1, 2, 9, 8]), 1: (-1, [-1] * 4)}
    plain = webdataset.WebDataset(str(tmp_path / "out/train/train-000000.tar"), shardshuffle=False)
    by_key = {sample["__key__"]: sample for sample in plain}
    assert json.loads(by_key["a"]["json"]) == {"group": 4, "roi": [1, 2, 9, 8]}
    assert "json" not in by_key["b"]


def test_the_index_says_what_the_shards_hold(shards: Path):
    content = json.loads((shards / "train/index.json").read_text())
    assert content["class_counts"] == [8, 8, 8]
    assert content["image_kinds"] == {"png": 24}
    assert [shard["samples"] for shard in content["shards"]] == [10, 10, 4]


def test_a_shard_set_travels_without_its_open_files(shards: Path):
    opened = ShardSet.open(shards / "train")
    data = opened.read(5)
    assert pickle.loads(pickle.dumps(opened)).read(5) == data


def test_a_shard_cut_short_is_refused_when_opened(shards: Path):
    path = shards / "train/train-000001.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"train-000001.tar: has \d+ bytes, the index says \d+; build the shards again"):
        ShardSet.open(shards / "train")


def test_a_missing_shard_is_refused_when_opened(shards: Path):
    (shards / "train/train-000001.tar").unlink()
    with pytest.raises(UserError, match=r"train-000001.tar: the shard is missing"):
        ShardSet.open(shards / "train")


def test_a_changed_image_is_refused_when_read_with_shard_and_key(shards: Path):
    path = shards / "train/train-000001.tar"
    opened = ShardSet.open(shards / "train")
    data = opened.read(12)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(data, data[:-1] + bytes([data[-1] ^ 1])))
    with pytest.raises(UserError, match=r"train-000001.tar: \d{5}/\d{6}_\d{3}.png: changed or cut short"):
        ShardSet.open(shards / "train").read(12)


def test_rows_of_another_index_are_refused(shards: Path):
    folder = shards / "train"
    rows = read_index(folder).rows.copy()
    rows["label"][3] = (rows["label"][3] + 1) % 3
    np.save(folder / "index.npy", rows)
    with pytest.raises(UserError, match=r"index.npy does not belong to index.json"):
        ShardSet.open(folder)


def test_an_index_with_a_label_out_of_range_is_refused(shards: Path):
    folder = shards / "train"
    rows = read_index(folder).rows.copy()
    rows["label"][3] = 3
    np.save(folder / "index.npy", rows)
    content = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**content, "rows_sha256": rows_digest(rows)}))
    with pytest.raises(UserError, match="sample 3: label 3 is outside 0 to 2"):
        ShardSet.open(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}', '{"version": 0}'])
def test_an_unreadable_index_is_refused(shards: Path, text: str):
    (shards / "train/index.json").write_text(text)
    with pytest.raises(UserError, match="build the shards again"):
        ShardSet.open(shards / "train")


def test_a_folder_without_an_index_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"no index.json; build the shards with"):
        ShardSet.open(tmp_path)


def test_rows_that_would_have_to_be_unpickled_are_refused(shards: Path):
    np.save(shards / "train/index.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(UserError, match="the index cannot be read"):
        ShardSet.open(shards / "train")


@pytest.mark.data
def test_real_signs_in_shards_are_whole(shared_data: Path, tmp_path: Path):
    build_shards("gtsrb", shared_data / "gtsrb_official_sample.tar", tmp_path / "signs")
    assert check_shards(tmp_path / "signs") == []
    opened = ShardSet.open(tmp_path / "signs/train")
    assert np.bincount(opened.labels).tolist() == [12] * 43
    assert opened.groups.min() == 0 and (opened.rois[:, 2] > opened.rois[:, 0]).all()
    assert read_index(tmp_path / "signs/train").rows.dtype == ROW
