"""Building shards: what they hold, long tails, smaller images; bad samples are refused, and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from listed import Listed, build_listed, picture
from pictures import encode, gradient, write_image_folder

from moe_dist.data.datasets.catalog import DATASETS, Dataset
from moe_dist.data.datasets.samples import Sample
from moe_dist.data.image.decode import decode
from moe_dist.data.longtail import LongTail
from moe_dist.data.shards.build.build import build_shards
from moe_dist.data.shards.build.plan import source_fingerprint
from moe_dist.data.shards.index import Shrink, read_index
from moe_dist.data.shards.inspect.check import check_shards
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.errors import UserError


def test_equal_sources_give_equal_bytes(image_folder: Path, shards: Path, tmp_path: Path):
    build_shards("image_folder", image_folder, tmp_path / "again", samples_per_shard=10)
    for path in shards.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(shards)).read_bytes(), path.name


def test_progress_counts_every_sample(image_folder: Path, tmp_path: Path):
    calls: list[tuple[str, int, int]] = []
    build_shards("image_folder", image_folder, tmp_path / "out", on_progress=lambda *call: calls.append(call))
    assert calls == [("train", done, 24) for done in range(25)] + [("test", done, 9) for done in range(10)]


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


def test_all_bad_samples_of_a_shard_are_named_at_once(image_folder: Path, tmp_path: Path):
    for name in ("ant", "cat"):
        (image_folder / f"train/{name}/cut.png").write_bytes(picture()[:40])
    with pytest.raises(
        UserError, match=r"train/(ant|cat)/cut.png: not a JPEG.*; \S+ train/(ant|cat)/cut.png: not a JPEG"
    ) as told:
        build_shards("image_folder", image_folder, tmp_path / "out")
    assert str(told.value).count("cut.png") == 2


def test_of_very_many_bad_samples_the_first_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    samples = [Sample(f"{number:02d}", number, b"", "png", origin=f"file {number}") for number in range(23)]
    with pytest.raises(UserError, match=r"file \d+: .*; and 3 more$") as told:
        build_listed(monkeypatch, tmp_path / "out", samples)
    assert str(told.value).count("file ") == 20


def test_a_file_in_the_place_of_the_folder_is_refused_before_anything_is_read(image_folder: Path, tmp_path: Path):
    (tmp_path / "out").write_text("notes")
    with pytest.raises(UserError, match="out: already holds something"):
        build_shards("image_folder", image_folder, tmp_path / "out")


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
        build_listed(monkeypatch, tmp_path / "out", [Sample("a", 0, picture(), "png", origin="here"), sample])


def test_a_split_without_images_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(UserError, match="split train holds no images"):
        build_listed(monkeypatch, tmp_path / "out", [])


def test_a_folder_in_use_is_not_written_to(image_folder: Path, shards: Path):
    with pytest.raises(UserError, match="already holds something"):
        build_shards("image_folder", image_folder, shards)


def test_a_key_of_two_shards_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    samples = [Sample(key, 0, picture(), "png", origin=f"file {n}") for n, key in enumerate(["a", "b", "c", "a"])]
    with pytest.raises(UserError, match=r"file [03]: key a occurs twice"):
        build_listed(monkeypatch, tmp_path / "out", samples, samples_per_shard=1)
    assert list(tmp_path.iterdir()) == []


def test_a_long_tail_is_cut_from_the_training_split_and_recorded(tmp_path: Path):
    source = write_image_folder(tmp_path / "pictures", train=8, test=3)
    tail = LongTail(4, "random", 3)
    build_shards("image_folder", source, tmp_path / "out", long_tail=tail)
    # 8 * (1 / 4) ** (c / 2) for c = 0, 1, 2: 8, 4, 2
    assert np.bincount(ShardSet.open(tmp_path / "out/train").labels).tolist() == [8, 4, 2]
    assert np.bincount(ShardSet.open(tmp_path / "out/test").labels).tolist() == [3, 3, 3]
    assert read_index(tmp_path / "out/train").long_tail == tail


def write_large(root: Path) -> Path:
    """Two classes: images of 90 x 60 pixels, left half black and right half white, and of 20 x 16 pixels."""
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            folder = root / split / name
            folder.mkdir(parents=True)
            wide = np.zeros((60, 90, 3), np.uint8)
            wide[:, 45:] = 255
            (folder / "wide.png").write_bytes(encode(wide, "PNG"))
            (folder / "small.png").write_bytes(encode(gradient(16, 20), "PNG"))
    return root


def test_large_images_are_made_smaller_and_small_ones_left_as_they_are(tmp_path: Path):
    source = write_large(tmp_path / "pictures")
    build_shards("image_folder", source, tmp_path / "out", shrink=Shrink(20, quality=90))
    opened = ShardSet.open(tmp_path / "out/train")
    images = [opened.read(sample) for sample in range(4)]
    assert sorted(decode(image).shape for image in images) == [(16, 20, 3)] * 2 + [(20, 30, 3)] * 2
    assert images.count((source / "train/ant/small.png").read_bytes()) == 2
    wide = next(decode(image) for image in images if decode(image).shape == (20, 30, 3)).astype(int)
    assert wide[:, :12].max() < 30 and wide[:, 18:].min() > 225
    index = read_index(tmp_path / "out/train")
    assert index.image_kinds == {"jpg": 2, "png": 2} and index.shrink == Shrink(20, 90)
    assert check_shards(tmp_path / "out") == []


def test_a_lower_quality_takes_fewer_bytes(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    sizes = []
    for quality in (30, 90):
        for split in ("train", "test"):
            (tmp_path / f"{quality}/{split}/ant").mkdir(parents=True)
            (tmp_path / f"{quality}/{split}/ant/noise.png").write_bytes(encode(noise, "PNG"))
        out = tmp_path / f"out{quality}"
        build_shards("image_folder", tmp_path / str(quality), out, shrink=Shrink(32, quality))
        sizes.append(len(ShardSet.open(out / "train").read(0)))
    assert sizes[0] < 0.6 * sizes[1]


def test_a_region_is_made_smaller_with_its_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    large = Sample("a", 0, encode(gradient(60, 90), "PNG"), "png", roi=(10, 9, 47, 60))
    small = Sample("b", 1, picture(), "png", roi=(1, 2, 9, 8))
    build_listed(monkeypatch, tmp_path / "out", [large, small], shrink=Shrink(20))
    opened = ShardSet.open(tmp_path / "out/train")
    # A third of each side: 10 / 3 and 9 / 3 rounded down, 47 / 3 and 60 / 3 rounded up.
    found = dict(zip(opened.labels.tolist(), opened.rois.tolist()))
    assert found == {0: [3, 3, 16, 20], 1: [1, 2, 9, 8]}


def test_a_validation_split_is_built_where_the_dataset_has_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    class WithValidation(Listed):
        """The same samples, in all three splits."""

        def __init__(self, samples: list[Sample]) -> None:
            super().__init__(samples)
            self.counts = {"train": 1, "val": 1, "test": 1}

    samples = [Sample("a", 0, picture(), "png")]
    listed = Dataset("listed", "", "", "", "", open=lambda source: WithValidation(samples))
    monkeypatch.setitem(DATASETS, "listed", listed)
    indexes = build_shards("listed", None, tmp_path / "out")
    assert list(indexes) == ["train", "val", "test"]
    assert read_index(tmp_path / "out/val").split == "val"
    assert check_shards(tmp_path / "out") == []
