"""Datasets as they are found on disk: what is read of them, and what is refused with which words."""

from __future__ import annotations

import pickle
import shutil
import tarfile
import unicodedata
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from built_data import built_data
from pictures import encode, gradient, write_tar
from sklearn.datasets import load_digits

from moe_dist.data.datasets.catalog import DATASETS, dataset, open_contents
from moe_dist.data.datasets.gtsrb import CLASS_NAMES
from moe_dist.data.datasets.samples import Contents, KeptContents, Sample
from moe_dist.data.image.decode import decode
from moe_dist.data.longtail import LongTail, kept_numbers
from moe_dist.errors import UserError
from moe_dist.settings.data import DataConfig

FOLDERS = dataset("image_folder")
GTSRB = dataset("gtsrb")


def as_tar(folder: Path, top: str) -> Path:
    """`folder` as a tar in which it is called `top`."""
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname=top)
    return path


def by_key(contents: Contents, split: str) -> dict[str, Sample]:
    samples = [contents.sample(split, number) for number in range(contents.counts[split])]
    assert [sample.label for sample in samples] == contents.labels(split).tolist()
    found = {sample.key: sample for sample in samples}
    assert len(found) == len(samples)
    return found


def test_an_unknown_dataset_is_refused_with_the_choices():
    with pytest.raises(UserError, match=r"no dataset is called 'digit'; choose one of cifar10, cifar100, .*usps"):
        dataset("digit")


def test_digits_are_scikit_learns_scans_in_a_fixed_stratified_split():
    """A pixel of 0 to 16 becomes round(255 / 16 pixel)."""
    digits = load_digits()
    contents = dataset("digits").open(None)
    samples = {split: by_key(contents, split) for split in ("train", "test")}
    assert not samples["train"].keys() & samples["test"].keys()
    assert {split: len(found) for split, found in samples.items()} == DATASETS["digits"].expected
    for found in samples.values():
        for key, sample in found.items():
            assert sample.label == digits.target[int(key)]
            assert np.array_equal(decode(sample.image)[..., 0], np.round(digits.images[int(key)] * 255 / 16))
    test_counts = np.bincount([sample.label for sample in samples["test"].values()])
    assert np.abs(test_counts - 0.2 * np.bincount(digits.target)).max() <= 0.5


def test_digits_read_no_source(tmp_path: Path):
    with pytest.raises(UserError, match=r"digits is embedded.*leave data.source out"):
        dataset("digits").open(tmp_path)


def test_a_folder_is_read_by_sorted_class_names(image_folder: Path):
    contents = FOLDERS.open(image_folder)
    assert contents.class_names == ("ant", "bee", "cat")
    assert contents.counts == {"train": 24, "test": 9}
    found = by_key(contents, "train")
    assert found["00001/000003_003"].image == (image_folder / "train/bee/003.png").read_bytes()
    assert {sample.label for key, sample in found.items() if key.startswith("00002/")} == {2}


@pytest.mark.parametrize("top", [".", "pictures"])
def test_a_tar_is_read_as_the_folder_it_was_made_from(image_folder: Path, top: str):
    folder, tar = FOLDERS.open(image_folder), FOLDERS.open(as_tar(image_folder, top))
    assert folder.class_names == tar.class_names
    for split in ("train", "test"):
        expected = {key: (sample.label, sample.image) for key, sample in by_key(folder, split).items()}
        assert {key: (sample.label, sample.image) for key, sample in by_key(tar, split).items()} == expected


def test_a_published_validation_split_is_read(image_folder: Path):
    shutil.copytree(image_folder / "test", image_folder / "val")
    contents = FOLDERS.open(image_folder)
    assert contents.counts == {"train": 24, "val": 9, "test": 9}
    assert contents.labels("val").tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    (image_folder / "val/bee").rename(image_folder / "val/wasp")
    with pytest.raises(UserError, match="val/wasp: class wasp has no folder in train"):
        FOLDERS.open(image_folder)


@pytest.mark.parametrize("packed", [False, True])
def test_contents_read_the_same_in_another_process(image_folder: Path, packed: bool):
    contents = FOLDERS.open(as_tar(image_folder, "pictures") if packed else image_folder)
    copy = pickle.loads(pickle.dumps(contents))
    assert by_key(copy, "train") == by_key(contents, "train")
    assert copy.class_names == contents.class_names


def test_an_image_that_went_missing_is_named(image_folder: Path):
    contents = FOLDERS.open(image_folder)
    (image_folder / "train/ant/000.png").unlink()
    with pytest.raises(UserError, match=r"train/ant/000.png: cannot be read \(No such file"):
        contents.sample("train", 0)


def test_every_entry_says_what_to_get_and_what_it_reads():
    for name, entry in DATASETS.items():
        assert entry.name == name
        assert all((entry.title, entry.where, entry.licence, entry.reads))
        if name not in ("digits", "image_folder", "vectors", "texts"):
            assert "http" in entry.where
            assert entry.expected.keys() >= {"train", "test"}
            assert entry.checked
            with pytest.raises(UserError, match=rf"dataset {name} needs data\.source"):
                entry.open(None)


def test_a_long_tail_cuts_train_alone(image_folder: Path):
    """Eight images a class at imbalance 4: int(8), int(8 / 4^(1/2)), int(8 / 4)."""
    contents = open_contents("image_folder", image_folder, LongTail(4))
    assert contents.counts == {"train": 8 + 4 + 2, "test": 9}
    assert contents.labels("test").tolist() == FOLDERS.open(image_folder).labels("test").tolist()
    bees = [key for key in by_key(contents, "train") if key.startswith("00001/")]
    assert bees == [f"00001/{number:06d}_{number:03d}" for number in range(4)]
    assert by_key(pickle.loads(pickle.dumps(contents)), "train") == by_key(contents, "train")


def test_a_long_tail_that_asks_for_too_much_is_refused(image_folder: Path):
    for number in range(3, 8):
        (image_folder / f"train/bee/{number:03d}.png").unlink()
    with pytest.raises(UserError, match=r"image_folder: class 1 has 3 images, a long tail of imbalance 4 asks for 4"):
        open_contents("image_folder", image_folder, LongTail(4))


def test_any_file_name_gets_a_key_of_its_own(image_folder: Path):
    for name in ("zwölf.a.png", "zw_lf_a.png", "zw lf.a.PNG"):
        shutil.copy(image_folder / "train/ant/000.png", image_folder / "train/ant" / name)
    assert len(by_key(FOLDERS.open(image_folder), "train")) == 27


def test_hidden_files_are_left_out(image_folder: Path):
    (image_folder / "train/ant/.DS_Store").write_bytes(b"x")
    assert FOLDERS.open(image_folder).counts["train"] == 24


def test_a_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere: no such folder or tar; set data.source"):
        FOLDERS.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"needs data\.source"):
        FOLDERS.open(None)


def test_a_folder_without_a_test_split_is_refused(image_folder: Path):
    shutil.rmtree(image_folder / "test")
    with pytest.raises(UserError, match=r"no test folder; .*found train"):
        FOLDERS.open(image_folder)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_class_without_images_is_named(image_folder: Path, split: str, packed: bool):
    for path in (image_folder / split / "bee").iterdir():
        path.unlink()
    source = as_tar(image_folder, "pictures") if packed else image_folder
    with pytest.raises(UserError, match=rf"{split}/bee: the class folder holds no images"):
        FOLDERS.open(source)


def test_a_test_class_unknown_in_train_is_named(image_folder: Path):
    (image_folder / "test/bee").rename(image_folder / "test/bees")
    with pytest.raises(UserError, match="test/bees: class bees has no folder in train"):
        FOLDERS.open(image_folder)


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_a_validation_split_of_another_name_is_read(image_folder: Path, name: str):
    """It was left out in silence."""
    shutil.copytree(image_folder / "test", image_folder / name)
    assert FOLDERS.open(image_folder).counts == {"train": 24, "val": 9, "test": 9}
    shutil.copytree(image_folder / "test", image_folder / "val")
    with pytest.raises(UserError, match=rf"both val and {name}: which is the val split"):
        FOLDERS.open(image_folder)


def test_accents_of_macos_are_those_of_others(image_folder: Path):
    """An accent may be a character of its own; both forms look alike."""
    for split, form in (("train", "NFC"), ("test", "NFD")):
        (image_folder / split / "bee").rename(image_folder / split / unicodedata.normalize(form, "aé"))
    contents = FOLDERS.open(image_folder)
    assert contents.class_names == ("ant", unicodedata.normalize("NFC", "aé"), "cat")
    assert np.bincount(contents.labels("test")).tolist() == [3, 3, 3]
    shutil.copytree(image_folder / "train/ant", image_folder / "train" / unicodedata.normalize("NFD", "aé"))
    with pytest.raises(UserError, match="look alike; rename or join the folders"):
        FOLDERS.open(image_folder)


@pytest.mark.parametrize("name", ["Bee", "bee ", " bee"])
def test_a_class_that_differs_in_what_is_hard_to_see_is_named(image_folder: Path, name: str):
    (image_folder / "test/bee").rename(image_folder / "test" / name)
    with pytest.raises(UserError, match=rf"has no folder in train \(train has 'bee', not '{name}'\)"):
        FOLDERS.open(image_folder)


def test_a_class_name_that_would_break_tables_is_refused(image_folder: Path):
    (image_folder / "train/bee").rename(image_folder / "train/be\ne")
    with pytest.raises(UserError, match=r"train/'be\\ne': a class's name has control characters"):
        FOLDERS.open(image_folder)


def test_class_names_of_any_script_are_read(image_folder: Path):
    for split in ("train", "test"):
        (image_folder / split / "cat").rename(image_folder / split / "🐈 [v2] #1")
    assert FOLDERS.open(image_folder).class_names == ("ant", "bee", "🐈 [v2] #1")


def test_how_many_files_of_a_labelling_tool_lie_between_the_images_is_told(image_folder: Path):
    for path in (image_folder / "train/ant").iterdir():
        path.with_suffix(".json").touch()
    with pytest.raises(
        UserError, match=r"train/ant/000.json: not a jpg, .* convert, move or remove it \(8 such files\)"
    ):
        FOLDERS.open(image_folder)


def test_marks_of_windows_on_downloads_are_nobodys_data(image_folder: Path):
    (image_folder / "train/ant/000.png:Zone.Identifier").write_bytes(b"[ZoneTransfer]")
    assert FOLDERS.open(image_folder).counts == {"train": 24, "test": 9}


@pytest.mark.parametrize("name", ["train/ant/notes.txt", "train/ant/photo.webp", "train/stray.png"])
def test_a_file_that_would_be_passed_over_is_named(image_folder: Path, name: str):
    (image_folder / name).write_bytes(b"x")
    with pytest.raises(UserError, match=rf"{name}: not a jpg, jpeg, png, ppm file in a class folder"):
        FOLDERS.open(image_folder)


def test_a_tar_cut_short_is_refused(image_folder: Path):
    tar = as_tar(image_folder, ".")
    whole = tar.read_bytes()
    for kept in (len(whole) // 2, len(whole) // 2 + 300):
        tar.write_bytes(whole[:kept])
        with pytest.raises(UserError, match=r"(cut short|damaged).*; download or pack it again"):
            FOLDERS.open(tar)


def write_official(root: Path, classes: int = 43) -> Path:
    """The official layout: per class two tracks of two 20 x 10 images, listed as 40 x 20 with region 6,5 to 31,19."""
    header = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    image = encode(gradient(10, 20), "PPM")
    for label in range(classes):
        folder = root / "GTSRB/Final_Training/Images" / f"{label:05d}"
        folder.mkdir(parents=True)
        names = [f"{track:05d}_{frame:05d}.ppm" for track in range(2) for frame in range(2)]
        for name in names:
            (folder / name).write_bytes(image)
        rows = "".join(f"{name};40;20;6;5;31;19;{label}\n" for name in names)
        (folder / f"GT-{label:05d}.csv").write_text(header + rows)
    test = root / "GTSRB/Final_Test/Images"
    test.mkdir(parents=True)
    (test / "00000.ppm").write_bytes(image)
    (root / "GTSRB/GT-final_test.csv").write_text(header + "00000.ppm;20;10;3;2;16;9;14\n")
    return root


def test_regions_are_scaled_from_the_listed_to_the_stored_size(tmp_path: Path):
    """Stored at half size: x 6 to 31 becomes 3 to 15.5, grown to 16; y 5 to 19 becomes 2.5 to 9.5, grown to 2 to 10."""
    contents = GTSRB.open(write_official(tmp_path))
    assert {sample.roi for sample in by_key(contents, "train").values()} == {(3, 2, 16, 10)}
    (test,) = by_key(contents, "test").values()
    assert (test.roi, test.label, test.group) == ((3, 2, 16, 9), 14, -1)


def test_tracks_are_groups_of_one_class(tmp_path: Path):
    """43 classes of two tracks: 86 groups of two frames, though every class calls its tracks 0 and 1."""
    groups: dict[int, set[tuple[int, str]]] = {}
    for sample in by_key(GTSRB.open(write_official(tmp_path)), "train").values():
        groups.setdefault(sample.group, set()).add((sample.label, sample.key.split("/")[1].split("_")[0]))
    assert sorted(groups) == list(range(86))
    assert all(len(tracks) == 1 for tracks in groups.values())


def write_repacked(root: Path, name: str = "{track:05d}_{frame:05d}.jpg", kaggle: bool = False) -> Path:
    """A repacked layout: per class two tracks of three 20 x 10 images, and a test image.

    name: of a training image; kaggle: as the copy there has it, with a second, unlisted copy of its training folder.
    """
    columns = "Width,Height,Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path"
    train, test = ("Train", "Test") if kaggle else ("train", "test")
    header = columns if kaggle else columns.lower().replace(".", "_").replace("classid", "class_id")
    places = [
        (f"{train}/{label}/{name.format(label=label, track=track, frame=frame)}", label)
        for label in range(43)
        for track in range(2)
        for frame in range(3)
    ]
    for split, rows in ((train, places), (test, [(f"{test}/00000.png", 14)])):
        for path, _ in rows:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(encode(gradient(10, 20), "JPEG" if path.endswith("jpg") else "PNG"))
        lines = [f"20,10,3,2,16,9,{label},{path}" for path, label in rows]
        (root / f"{split}.csv").write_text("\n".join([header, *lines]) + "\n")
    if kaggle:
        shutil.copytree(root / "Train", root / "train")
        (root / "Meta.csv").write_text("Path,ClassId\n")
    return root


def tracks_of(contents: Contents) -> list[int]:
    """The numbers of images that the groups of the training split hold."""
    groups = [contents.sample("train", number).group for number in range(contents.counts["train"])]
    return np.unique(groups, return_counts=True)[1].tolist()


@pytest.mark.parametrize("name", ["{track:05d}_{frame:05d}.jpg", "{label:05d}_{track:05d}_{frame:05d}.jpg"])
def test_repacked_signs_keep_their_tracks_whatever_their_names(tmp_path: Path, name: str):
    """Where names begin with the class, that was taken to be the track, and validation had no image."""
    contents = GTSRB.open(write_repacked(tmp_path / "signs", name))
    assert contents.counts == {"train": 258, "test": 1}
    assert tracks_of(contents) == [3] * 86
    config = DataConfig(dataset="gtsrb", source=tmp_path / "signs", val_fraction=0.25, image_size=8)
    data = built_data(config, 0, tmp_path / "cache")
    assert np.bincount(data.val.labels[data.val_samples]).tolist() == [3] * 43


def test_kaggles_copy_of_the_signs_is_read(tmp_path: Path):
    root = write_repacked(tmp_path, "{label:05d}_{track:05d}_{frame:05d}.png", kaggle=True)
    contents = GTSRB.open(root)
    assert contents.counts == {"train": 258, "test": 1}
    assert tracks_of(contents) == [3] * 86
    (test,) = by_key(contents, "test").values()
    assert (test.label, test.roi, test.group) == (14, (3, 2, 16, 9), -1)
    (root / "Test.csv").unlink()
    with pytest.raises(UserError, match=r"Test.csv is missing"):
        GTSRB.open(root)


def test_tables_of_signs_that_a_spreadsheet_saved_are_read_or_refused(tmp_path: Path):
    table = write_repacked(tmp_path) / "train.csv"
    text = table.read_text()
    table.write_text(text.replace("/", "\\"), encoding="utf-16")
    assert GTSRB.open(tmp_path).counts == {"train": 258, "test": 1}
    table.write_text(text.replace(",", ";"))
    with pytest.raises(UserError, match=r"train.csv: no column path; expected a heading, ',' between fields"):
        GTSRB.open(tmp_path)


def write_torchvisions(root: Path) -> Path:
    """What `torchvision.datasets.GTSRB(root, download=True)` leaves, of both splits, with the archives beside it."""
    write_official(root / "gtsrb")
    (root / "gtsrb/GTSRB/Final_Training/Images").rename(root / "gtsrb/GTSRB/Training")
    (root / "gtsrb/GTSRB/Final_Training").rmdir()
    (root / "gtsrb/GTSRB/GT-final_test.csv").rename(root / "gtsrb/GT-final_test.csv")
    for name in ("GTSRB-Training_fixed.zip", "GTSRB_Final_Test_Images.zip", "GTSRB_Final_Test_GT.zip"):
        (root / "gtsrb" / name).write_bytes(b"PK")
    return root


def test_torchvisions_folder_of_the_signs_is_read(tmp_path: Path):
    contents = GTSRB.open(write_torchvisions(tmp_path))
    assert contents.counts == {"train": 172, "test": 1}
    assert tracks_of(contents) == [2] * 86
    (test,) = by_key(contents, "test").values()
    assert (test.label, test.roi) == (14, (3, 2, 16, 9))


def test_the_final_training_images_go_before_those_of_torchvision(tmp_path: Path):
    write_official(tmp_path)
    shutil.copytree(tmp_path / "GTSRB/Final_Training/Images/00000", tmp_path / "GTSRB/Training/00000")
    assert GTSRB.open(tmp_path).counts == {"train": 172, "test": 1}


def test_archives_of_the_signs_that_are_still_packed_are_named(tmp_path: Path):
    (tmp_path / "GTSRB_Final_Training_Images.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"no GTSRB found; .*; unpack GTSRB_Final_Training_Images.zip"):
        GTSRB.open(tmp_path)


def test_a_class_of_signs_without_images_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"class 42 \(end of no overtaking by lorries\) has no training images"):
        GTSRB.open(write_official(tmp_path, classes=42))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("00000_00000.ppm;40;20;6;5;31;19;43", "class 43 is outside 0 to 42"),
        ("00000_00000.ppm;40;20;6;5;41;19;0", "region 6,5,41,19 does not lie in an image of 40 x 20"),
        ("00000_00000.ppm;40;20;six;5;31;19;0", "invalid literal"),
        ("00000_00000.ppm;40;20", "unreadable row"),
    ],
)
def test_an_unreadable_row_is_named(tmp_path: Path, row: str, reason: str):
    table = write_official(tmp_path) / "GTSRB/Final_Training/Images/00000/GT-00000.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], row, *lines[2:]]))
    with pytest.raises(UserError, match=rf"GT-00000.csv line 2: unreadable row.*{reason}|line 2: {reason}"):
        GTSRB.open(tmp_path)


def test_tables_and_images_must_name_each_other(tmp_path: Path):
    images = write_official(tmp_path) / "GTSRB/Final_Training/Images/00003"
    shutil.copy(images / "00000_00000.ppm", images / "00009_00000.ppm")
    with pytest.raises(UserError, match=r"00003/00009_00000.ppm is in no table"):
        GTSRB.open(tmp_path)
    (images / "00009_00000.ppm").unlink()
    (images / "00000_00000.ppm").unlink()
    with pytest.raises(UserError, match=r"00003/00000_00000.ppm is listed but missing"):
        GTSRB.open(tmp_path)


def test_a_folder_of_something_else_is_no_gtsrb(image_folder: Path):
    with pytest.raises(UserError, match="no GTSRB found"):
        GTSRB.open(image_folder)


def test_a_link_in_a_tar_is_refused(tmp_path: Path):
    path = write_tar(tmp_path / "linked.tar", [("train/ant/0.png", b"x")])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("train/ant/1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(UserError, match=r"train/ant/1.png is neither a file nor a folder"):
        FOLDERS.open(path)


@pytest.mark.data
def test_the_official_sample_of_real_signs(shared_data: Path):
    contents = GTSRB.open(shared_data / "gtsrb_official_sample.tar")
    assert contents.counts == {"train": 12 * 43, "test": 160}
    assert contents.class_names == CLASS_NAMES
    assert np.bincount(contents.labels("train")).tolist() == [12] * 43
    found = by_key(contents, "train")
    # 00000_00012.ppm is listed as 37 x 38 with region 5,6 to 32,33 and stored as 35 x 35:
    # x 5 35/37 = 4.7, 32 35/37 = 30.3; y 6 35/38 = 5.5, 33 35/38 = 30.4
    assert found["00000/00000_00012"].roi == (4, 5, 31, 31)


@pytest.mark.data
def test_the_repacked_real_signs(shared_data: Path):
    contents = GTSRB.open(shared_data / "gtsrb.tar")
    assert contents.counts == {"train": 25_087, "test": 7_949}
    sample = contents.sample("train", 0)
    assert decode(sample.image).shape == (35, 35, 3)
    assert sample.group >= 0 and sample.roi is not None


@pytest.mark.data
def test_the_sizes_of_long_tailed_cifar_100(shared_data: Path):
    source = shared_data / "cifar100_lt10.tar"
    whole = dataset("cifar100").open(source)
    assert (np.bincount(whole.labels("test")) == [100] * 100).all()
    for imbalance, images in ((100, 10_847), (50, 12_608), (10, 19_573)):
        counts = np.bincount(whole.labels("train")[kept_numbers(whole.labels("train"), 100, LongTail(imbalance))])
        assert (counts.sum(), counts[0], counts[99]) == (images, 500, 500 // imbalance)
    contents = open_contents("cifar100", source, LongTail(100))
    assert contents.counts == {"train": 10_847, "test": 10_000}
    assert decode(contents.sample("train", 10_846).image).shape == (32, 32, 3)


@pytest.mark.data
@pytest.mark.parametrize("choice", ["auto", pytest.param("first", marks=pytest.mark.slow)])
def test_the_long_tails_of_cifar_100_are_nested(shared_data: Path, choice: Literal["auto", "first"]):
    """Class folders whose names begin with a shuffled rank: auto draws from them, first is a draw here, too."""
    source = shared_data / "cifar100_lt10.tar"
    kept = {}
    for imbalance, images in ((100, 10_847), (50, 12_608), (10, 19_573)):
        contents = open_contents("cifar100", source, LongTail(imbalance, choice))
        assert contents.counts["train"] == images
        assert isinstance(contents, KeptContents)
        kept[imbalance] = set(contents.kept.tolist())
    assert kept[100] < kept[50] < kept[10]


def test_images_below_train_unlabelled_have_no_label(image_folder: Path, tmp_path: Path):
    """Shards keep them, and what users call each image; splits, counts and the validation split leave them out."""
    (image_folder / "train/bee").rename(image_folder / "train/unlabelled")
    (image_folder / "test/bee").rename(tmp_path / "bee")
    contents = FOLDERS.open(image_folder)
    assert contents.class_names == ("ant", "cat")
    config = DataConfig(dataset="image_folder", source=image_folder, image_size=8, val_fraction=0.25)
    data = built_data(config, 0, tmp_path)
    names = data.train.names()
    folders = ["ant", "cat", "unlabelled"]
    assert sorted(names) == sorted(f"train/{folder}/{number:03d}.png" for folder in folders for number in range(8))
    for name, label in zip(names, data.train.labels.tolist()):
        assert folders[label] == name.split("/")[1]
    assert data.info.class_counts == (6, 6) and set(data.train.labels[data.val_samples]) == {0, 1}
    assert len(data.train_samples) == 20 and not data.untested_classes


def test_folders_of_unlabelled_images_that_are_refused(image_folder: Path):
    empty = image_folder / "train/unlabelled"
    empty.mkdir()
    with pytest.raises(UserError, match="train/unlabelled: the folder of images without a label holds no images"):
        FOLDERS.open(image_folder)
    empty.rename(image_folder / "test/unlabelled")
    with pytest.raises(UserError, match="test/unlabelled: only train may hold images without a label; remove it"):
        FOLDERS.open(image_folder)
    (image_folder / "test/unlabelled").rmdir()
    for name in ("ant", "bee"):
        shutil.rmtree(image_folder / "train" / name)
    (image_folder / "train/cat").rename(image_folder / "train/unlabeled")
    with pytest.raises(
        UserError, match="holds only images without a label; put a few of each class into train/<class>/"
    ):
        FOLDERS.open(image_folder)
