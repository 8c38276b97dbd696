"""Shards: what is written is what plain WebDataset and the index read; damage is refused with its place."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import webdataset
from pictures import encode, gradient

from moe_dist.data.catalog import DATASETS, Dataset, dataset
from moe_dist.data.check import check_shards
from moe_dist.data.index import ROW, read_index, rows_digest
from moe_dist.data.samples import Sample
from moe_dist.data.shards import ShardSet, build_shards, source_fingerprint
from moe_dist.errors import UserError


class Listed:
    """A dataset of given samples, the same for both splits."""

    class_names = ("ant", "bee")

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples
        self.counts = {"train": len(samples), "test": len(samples)}

    def read(self, split: str):
        return iter(self.samples)


def build_listed(monkeypatch: pytest.MonkeyPatch, out: Path, samples: list[Sample]) -> None:
    listed = Dataset("listed", "", "", "", "", open=lambda source: Listed(samples))
    monkeypatch.setitem(DATASETS, "listed", listed)
    build_shards("listed", None, out)


def picture(shade: int = 0) -> bytes:
    return encode(gradient(8, 9, shade), "PNG")


def test_webdataset_reads_back_what_the_dataset_gave(image_folder: Path, shards: Path):
    expected = {s.key: (s.image, str(s.label).encode()) for s in dataset("image_folder").read(image_folder, "train")}
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
    assert opened.groups.tolist() == [4, -1]
    assert opened.rois.tolist() == [[1, 2, 9, 8], [-1] * 4]
    first, second = webdataset.WebDataset(str(tmp_path / "out/train/train-000000.tar"), shardshuffle=False)
    assert json.loads(first["json"]) == {"group": 4, "roi": [1, 2, 9, 8]}
    assert "json" not in second


def test_equal_sources_give_equal_bytes(image_folder: Path, shards: Path, tmp_path: Path):
    build_shards("image_folder", image_folder, tmp_path / "again", samples_per_shard=10)
    for path in shards.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(shards)).read_bytes(), path.name


def test_the_index_says_what_the_shards_hold(shards: Path):
    content = json.loads((shards / "train/index.json").read_text())
    assert content["class_counts"] == [8, 8, 8]
    assert content["image_kinds"] == {"png": 24}
    assert [shard["samples"] for shard in content["shards"]] == [10, 10, 4]


def test_progress_counts_every_sample(image_folder: Path, tmp_path: Path):
    calls: list[tuple[str, int, int]] = []
    build_shards("image_folder", image_folder, tmp_path / "out", on_progress=lambda *call: calls.append(call))
    assert calls == [("train", done, 24) for done in range(1, 25)] + [("test", done, 9) for done in range(1, 10)]


def test_a_source_changes_its_fingerprint_with_its_files(image_folder: Path):
    before = source_fingerprint("image_folder", image_folder)
    assert before == source_fingerprint("image_folder", image_folder)
    (image_folder / "train/ant/new.png").write_bytes(picture())
    assert before != source_fingerprint("image_folder", image_folder)
    assert source_fingerprint("digits", None) != before


def test_a_truncated_image_is_refused_with_its_file_and_leaves_nothing(image_folder: Path, tmp_path: Path):
    jpeg = encode(np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8), "JPEG")
    (image_folder / "train/bee/cut.jpg").write_bytes(jpeg[:-30])
    with pytest.raises(UserError, match=r"train/bee/cut.jpg: Premature end of JPEG"):
        build_shards("image_folder", image_folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (Sample("b", 2, picture(), "png", origin="here"), "here: label 2 is outside 0 to 1"),
        (Sample("b", -1, picture(), "png", origin="here"), "here: label -1 is outside 0 to 1"),
        (Sample("a", 1, picture(), "png", origin="here"), "here: key a occurs twice"),
        (Sample("b.c", 1, picture(), "png", origin="here"), r"here: key 'b.c' may hold letters"),
        (
            Sample("b", 1, picture(), "png", roi=(0, 0, 10, 8), origin="here"),
            "region 0,0,10,8 does not lie in the image of 9 x",
        ),
    ],
)
def test_a_bad_sample_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sample: Sample, reason: str):
    with pytest.raises(UserError, match=reason):
        build_listed(monkeypatch, tmp_path / "out", [Sample("a", 0, picture(), "png"), sample])


def test_a_split_without_images_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(UserError, match="split train holds no images"):
        build_listed(monkeypatch, tmp_path / "out", [])


def test_a_folder_in_use_is_not_written_to(image_folder: Path, shards: Path):
    with pytest.raises(UserError, match="already holds something"):
        build_shards("image_folder", image_folder, shards)


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
