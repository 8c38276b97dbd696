"""Folders and archives as people have them: read in full, passed over with a word, or refused; never left out."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from pictures import write_tar

from moe_dist.data.datasets.catalog import dataset
from moe_dist.data.datasets.samples import Contents
from moe_dist.data.shards.build.build import build_shards
from moe_dist.data.shards.build.plan import source_fingerprint
from moe_dist.errors import UserError

FOLDERS = dataset("image_folder")
WHOLE = {"train": 24, "test": 9}


def in_order(contents: Contents) -> list[tuple[str, int, bytes]]:
    """Every sample of train and test as (key, label, image)."""
    return [
        (sample.key, sample.label, sample.image)
        for split in ("train", "test")
        for sample in (contents.sample(split, number) for number in range(contents.counts[split]))
    ]


def as_zip(folder: Path, change: Callable[[zipfile.ZipInfo], None] = lambda info: None) -> Path:
    """`folder` as a .zip, with its members' entries changed by `change`."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                info = zipfile.ZipInfo(file.relative_to(folder.parent).as_posix())
                change(info)
                archive.writestr(info, file.read_bytes())
    return path


def as_tar(folder: Path) -> Path:
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname=folder.name)
    return path


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(116, "Stale file handle")])
def test_a_folder_that_cannot_be_listed_is_named(image_folder: Path, monkeypatch: pytest.MonkeyPatch, error: OSError):
    (image_folder / "train/ant/more").mkdir()
    (image_folder / "train/ant/000.png").rename(image_folder / "train/ant/more/000.png")
    listed = os.scandir

    def refusing(path: str | os.PathLike[str]) -> object:
        if Path(path).name == "more":
            raise error
        return listed(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=rf"cannot list train/ant/more \({error.strerror}\)"):
        FOLDERS.open(image_folder)
    with pytest.raises(UserError, match="cannot list train/ant/more"):
        source_fingerprint("image_folder", image_folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
def test_a_folder_without_permission_is_named(image_folder: Path):
    closed = image_folder / "train/ant/more"
    closed.mkdir()
    closed.chmod(0)
    with pytest.raises(UserError, match=r"cannot list train/ant/more \(Permission denied\)"):
        FOLDERS.open(image_folder)


def test_links_that_lead_back_are_passed_over_and_named(image_folder: Path, capsys: pytest.CaptureFixture[str]):
    """Two of them have no end where links are followed blindly, one ends in an error of the system."""
    for name in ("ant", "bee"):
        (image_folder / "train" / name / "up").symlink_to("..")
    contents = FOLDERS.open(image_folder)
    assert contents.counts == WHOLE
    told = " ".join(capsys.readouterr().out.split())
    assert "train/ant/up leads back to train, in which it lies; it is passed over" in told
    assert "train/bee/up leads back to train" in told
    assert len(source_fingerprint("image_folder", image_folder)) == 12


def test_a_loop_of_links_through_two_folders_ends(image_folder: Path):
    (image_folder / "train/ant/x").symlink_to("../bee")
    (image_folder / "train/bee/y").symlink_to("../ant")
    with pytest.raises(UserError, match=r"train/\w+(/\w)? and train/\w+(/\w)? are the same folder \(a link\)"):
        FOLDERS.open(image_folder)


@pytest.mark.parametrize("link", ["val", "train/dog", "test/bee/more"])
def test_a_folder_that_would_be_read_twice_is_named(image_folder: Path, link: str):
    target = {"val": "test", "train/dog": "train/ant", "test/bee/more": "train/bee"}[link]
    (image_folder / link).symlink_to(image_folder / target)
    with pytest.raises(UserError, match=rf"({link} and {target}|{target} and {link}) are the same folder"):
        FOLDERS.open(image_folder)


def test_linked_folders_and_files_are_read(image_folder: Path, tmp_path: Path):
    """Images are kept elsewhere, and a folder of links is what data.source names."""
    expected = in_order(FOLDERS.open(image_folder))
    (tmp_path / "kept").mkdir()
    (image_folder / "train/ant").rename(tmp_path / "kept/ant")
    (image_folder / "train/ant").symlink_to(tmp_path / "kept/ant")
    (image_folder / "test/bee/000.png").rename(tmp_path / "kept/000.png")
    (image_folder / "test/bee/000.png").symlink_to("../../../kept/000.png")
    (tmp_path / "name").symlink_to(image_folder)
    assert in_order(FOLDERS.open(tmp_path / "name")) == expected


def test_a_link_to_nothing_is_named(image_folder: Path):
    """As git-annex, DVC and a cache of downloads leave them where a file was not fetched."""
    (image_folder / "train/ant/000.png").unlink()
    (image_folder / "train/ant/000.png").symlink_to("../../objects/ab12")
    for look in (FOLDERS.open, lambda source: source_fingerprint("image_folder", source)):
        with pytest.raises(UserError, match=r"train/ant/000.png: a link to nothing \(../../objects/ab12\)"):
            look(image_folder)


def test_a_link_to_itself_is_named(image_folder: Path):
    (image_folder / "train/ant/self.png").symlink_to("self.png")
    with pytest.raises(UserError, match=r"train/ant/self.png"):
        FOLDERS.open(image_folder)


def test_a_pipe_is_named_and_not_waited_for(image_folder: Path):
    os.mkfifo(image_folder / "train/ant/pipe.png")
    with pytest.raises(UserError, match=r"train/ant/pipe.png: neither a file nor a folder"):
        FOLDERS.open(image_folder)


@pytest.mark.parametrize("packed", [None, "tar", "zip"])
def test_what_systems_put_beside_files_is_nobodys_data(image_folder: Path, packed: str | None):
    expected = in_order(FOLDERS.open(image_folder))
    for name in ("Thumbs.db", "desktop.ini", "ehthumbs.db", ".DS_Store", "._000.png", "THUMBS.DB", "Icon\r"):
        (image_folder / "train/ant" / name).write_bytes(b"x")
    for name in ("__MACOSX", "lost+found", "System Volume Information", "$RECYCLE.BIN", "train/ant/@eaDir"):
        (image_folder / name).mkdir()
        (image_folder / name / "000.png").write_bytes(b"x")
    source = {None: lambda folder: folder, "tar": as_tar, "zip": as_zip}[packed](image_folder)
    assert in_order(FOLDERS.open(source)) == expected


def test_the_resource_forks_of_a_zip_of_macos_are_nobodys_data(image_folder: Path):
    """Its archives have a second top folder, which must not hide that train and test lie in one."""
    expected = in_order(FOLDERS.open(image_folder))
    path = as_zip(image_folder)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/pictures/train/ant/._000.png", b"x")
    assert in_order(FOLDERS.open(path)) == expected


@pytest.mark.parametrize("name", [b"train/caf\xe9", b"train/ant/caf\xe9.png", b"train/ant/caf\xe9"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_name_that_is_not_utf8_is_refused(image_folder: Path, name: bytes, packed: bool):
    """Training ran, and then every report failed."""
    path = Path(os.fsdecode(os.path.join(os.fsencode(image_folder), name)))
    if path.suffix == ".png":
        shutil.copy(image_folder / "train/ant/000.png", path)
    else:
        path.mkdir()
        shutil.copy(image_folder / "train/ant/000.png", path / "000.png")
    source = as_tar(image_folder) if packed else image_folder
    with pytest.raises(UserError, match=r"caf\\xe9(.png|/000.png)?: the name is not UTF-8; rename it") as raised:
        FOLDERS.open(source)
    str(raised.value).encode()


def test_a_source_whose_own_name_is_not_utf8_is_refused(image_folder: Path):
    moved = image_folder.with_name(os.fsdecode(b"caf\xe9"))
    image_folder.rename(moved)
    for look in (FOLDERS.open, lambda source: source_fingerprint("image_folder", source)):
        with pytest.raises(UserError, match=r"caf\\xe9: the name is not UTF-8"):
            look(moved)


def test_hard_links_in_a_tar_are_the_files_they_name(image_folder: Path):
    """GNU tar and Python write a file's second name so; its bytes are there once."""
    first = image_folder / "train/ant/000.png"
    os.link(first, image_folder / "test/ant/zz.png")
    os.link(first, image_folder / "train/ant/same.png")
    path = as_tar(image_folder)
    with tarfile.open(path) as tar:
        assert sum(info.islnk() for info in tar) == 2
    contents = FOLDERS.open(path)
    assert in_order(contents) == in_order(FOLDERS.open(image_folder))
    assert contents.counts == {"train": 25, "test": 10}


@pytest.mark.parametrize("target", ["train/ant/9.png", "train/ant", "/etc/passwd"])
def test_a_hard_link_to_no_file_before_it_is_named(tmp_path: Path, target: str):
    path = write_tar(tmp_path / "linked.tar", [("train/ant/0.png", b"x")])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("train/ant/1.png")
        link.type, link.linkname = tarfile.LNKTYPE, target
        tar.addfile(link)
    with pytest.raises(UserError, match=rf"train/ant/1.png is a hard link to {target}, which is no file before it"):
        FOLDERS.open(path)


COMPRESSORS = {".tar.gz": gzip.compress, ".tgz": gzip.compress, ".tar.bz2": bz2.compress, ".tar.xz": lzma.compress}


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_a_compressed_tar_is_unpacked_once_and_its_size_told_first(
    image_folder: Path, ending: str, capsys: pytest.CaptureFixture[str]
):
    expected = in_order(FOLDERS.open(image_folder))
    packed = image_folder.with_name(f"pictures{ending}")
    packed.write_bytes(COMPRESSORS[ending](as_tar(image_folder).read_bytes()))
    assert in_order(FOLDERS.open(packed)) == expected
    assert "compressed, is unpacked once into" in " ".join(capsys.readouterr().out.split())
    assert in_order(FOLDERS.open(packed)) == expected
    assert "unpacked" not in capsys.readouterr().out


def test_a_zip_is_unpacked_once_and_its_size_told_first(image_folder: Path, capsys: pytest.CaptureFixture[str]):
    expected = in_order(FOLDERS.open(image_folder))
    path = as_zip(image_folder)
    assert in_order(FOLDERS.open(path)) == expected
    size = sum(file.stat().st_size for file in image_folder.rglob("*.png"))
    assert f"where it takes {size / 1e3:.1f} kB" in " ".join(capsys.readouterr().out.split())
    assert in_order(FOLDERS.open(path)) == expected
    assert "unpacked" not in capsys.readouterr().out


def test_shards_of_an_archive_are_those_of_its_folder(image_folder: Path, tmp_path: Path):
    expected = build_shards("image_folder", image_folder, tmp_path / "of_folder")
    found = build_shards("image_folder", as_zip(image_folder), tmp_path / "of_zip")
    assert {split: index.digest for split, index in found.items()} == {
        split: index.digest for split, index in expected.items()
    }


@pytest.mark.parametrize("pack", [as_zip, as_tar])
def test_contents_of_an_archive_read_the_same_in_another_process(image_folder: Path, pack: Callable[[Path], Path]):
    contents = FOLDERS.open(pack(image_folder))
    assert in_order(pickle.loads(pickle.dumps(contents))) == in_order(contents)


def test_a_changed_archive_is_unpacked_anew(image_folder: Path):
    assert FOLDERS.open(as_zip(image_folder)).counts == WHOLE
    (image_folder / "train/ant/000.png").unlink()
    assert FOLDERS.open(as_zip(image_folder)).counts == {"train": 23, "test": 9}


def test_a_zip_of_windows_is_read(image_folder: Path):
    r"""Older programs write `\` between folders, which the format forbids."""
    expected = in_order(FOLDERS.open(image_folder))

    def of_windows(info: zipfile.ZipInfo) -> None:
        info.create_system, info.filename = 0, info.filename.replace("/", "\\")

    assert in_order(FOLDERS.open(as_zip(image_folder, of_windows))) == expected


def rename_in_zip(path: Path, old: bytes, new: bytes) -> None:
    """Write other bytes for a member's name, without the mark of UTF-8."""
    assert len(old) == len(new)
    path.write_bytes(path.read_bytes().replace(old, new))


def test_names_of_a_zip_are_utf8_or_refused(image_folder: Path):
    """macOS writes UTF-8 without saying so, Windows the code page of the machine, which nobody can tell afterwards."""
    (image_folder / "train/cat").rename(image_folder / "train/c__t")
    (image_folder / "test/cat").rename(image_folder / "test/c__t")
    path = as_zip(image_folder)
    rename_in_zip(path, b"c__t", "cät".encode())
    assert FOLDERS.open(path).class_names == ("ant", "bee", "cät")
    path = as_zip(image_folder)
    rename_in_zip(path, b"c__t", b"c\x84\x84t")
    with pytest.raises(UserError, match=r"c\\x84\\x84t/000.png: the name is not UTF-8"):
        FOLDERS.open(path)


@pytest.mark.parametrize("name", ["../out.png", "pictures/../../out.png", "/etc/out.png", "C:/out.png"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_outside_an_archive_are_refused(image_folder: Path, name: str, kind: str):
    if kind == "zip":
        path = as_zip(image_folder)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"x")
    else:
        path = as_tar(image_folder)
        with tarfile.open(path, "a") as tar:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(UserError, match=rf"{name} lies outside the archive"):
        FOLDERS.open(path)


@pytest.mark.parametrize("kind", [0o020000, 0o010000, 0o120000, 0o060000])
def test_devices_pipes_and_links_in_a_zip_are_refused(image_folder: Path, kind: int):
    path = as_zip(image_folder)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("pictures/train/ant/odd.png")
        info.external_attr = (kind | 0o644) << 16
        archive.writestr(info, b"/etc/passwd")
    with pytest.raises(UserError, match=r"pictures/train/ant/odd.png is neither a file nor a folder"):
        FOLDERS.open(path)


def test_a_nested_archive_is_not_opened(image_folder: Path):
    (image_folder / "train/ant/more.zip").write_bytes(as_zip(image_folder).read_bytes())
    with pytest.raises(UserError, match=r"train/ant/more.zip: not a jpg, jpeg, png, ppm file"):
        FOLDERS.open(as_zip(image_folder))


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_that_swells_beyond_measure_is_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    """The allowance for small archives is lowered, so that the test writes megabytes instead of gigabytes."""
    monkeypatch.setattr("moe_dist.data.storage.archives._ALWAYS_ALLOWED", 1 << 20)
    zeros = bytes(4 << 20)
    if kind == "zip":
        path = tmp_path / "bomb.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("train/ant/0.png", zeros)
    else:
        path = tmp_path / "bomb.tar.gz"
        path.write_bytes(gzip.compress(write_tar(tmp_path / "bomb.tar", [("train/ant/0.png", zeros)]).read_bytes()))
    with pytest.raises(UserError, match=r"has 4\.\d kB and would take \d\.\d MB or more, over 100 times as much"):
        FOLDERS.open(path)


def test_an_archive_larger_than_the_space_for_it_is_refused(image_folder: Path, monkeypatch: pytest.MonkeyPatch):
    path = as_zip(image_folder)
    usage = shutil.disk_usage("/")._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"pictures.zip takes \d\.\d kB there, and 100 bytes are free; free space"):
        FOLDERS.open(path)


def test_an_encrypted_zip_is_refused(image_folder: Path):
    path = as_zip(image_folder)
    data = bytearray(path.read_bytes())
    for start in (data.find(b"PK\x03\x04") + 6, data.find(b"PK\x01\x02") + 8):
        data[start] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"test/ant/000.png is encrypted; unpack the archive with its password"):
        FOLDERS.open(path)


def test_a_zip_in_parts_is_refused_with_the_command(image_folder: Path):
    as_zip(image_folder).with_suffix(".z01").write_bytes(b"PK\x07\x08")
    with pytest.raises(UserError, match=r"the last part of a .zip in several; join them by `zip -s 0 \S+pictures.zip "):
        FOLDERS.open(image_folder.with_suffix(".zip"))


def test_a_zip_that_unpacks_itself_is_read(image_folder: Path):
    """A program lies before it."""
    path = as_zip(image_folder)
    path.write_bytes(b"MZ" + bytes(2000) + path.read_bytes())
    assert FOLDERS.open(path).counts == WHOLE


def test_a_name_twice_in_a_zip_is_refused(image_folder: Path):
    path = as_zip(image_folder)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("pictures/train/ant/000.png", b"x")
    with pytest.raises(UserError, match=r"pictures/train/ant/000.png occurs twice"):
        FOLDERS.open(path)


@pytest.mark.parametrize("inside", ["gzip", "image"])
def test_what_is_compressed_and_no_tar_is_refused(image_folder: Path, tmp_path: Path, inside: str):
    image = (image_folder / "train/ant/000.png").read_bytes()
    (tmp_path / "twice.tar.gz").write_bytes(gzip.compress(gzip.compress(image) if inside == "gzip" else image))
    with pytest.raises(UserError, match=r"twice.tar.gz: compressed, but not a tar; set data.source"):
        FOLDERS.open(tmp_path / "twice.tar.gz")


def test_joined_tars_that_are_compressed_are_refused_with_the_command(image_folder: Path, tmp_path: Path):
    path = tmp_path / "joined.tar.gz"
    path.write_bytes(gzip.compress(as_tar(image_folder).read_bytes()) * 2)
    with pytest.raises(UserError, match=rf"unpack both by `tar --ignore-zeros -xf {path} -C FOLDER` and name that"):
        FOLDERS.open(path)


@pytest.mark.parametrize("dialect", ["gnu", "v7", "pax", "ustar"])
def test_every_dialect_of_tar_is_read(image_folder: Path, dialect: str):
    subprocess.run(["tar", f"--format={dialect}", "-cf", "../any.tar", "."], cwd=image_folder, check=True)
    assert FOLDERS.open(image_folder.parent / "any.tar").counts == WHOLE


def test_a_zip_of_another_compression_is_refused_with_the_command(image_folder: Path):
    """Windows packs what is large by Deflate64, number 9."""
    path = as_zip(image_folder)
    data = bytearray(path.read_bytes())
    for start in (data.find(b"PK\x03\x04") + 8, data.find(b"PK\x01\x02") + 10):
        data[start : start + 2] = b"\x09\0"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"compressed in a way that is not read .*unpack it by `7z x \S*pictures.zip"):
        FOLDERS.open(path)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_half_downloaded_archive_is_refused_and_leaves_nothing(
    image_folder: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MOE_DIST_CACHE", str(tmp_path / "cache"))
    path = as_zip(image_folder)
    if kind == "tar.gz":
        path = image_folder.with_name("pictures.tar.gz")
        path.write_bytes(gzip.compress(as_tar(image_folder).read_bytes()))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"pictures.{kind}: .*; download or pack it again"):
        FOLDERS.open(path)
    assert list((tmp_path / "cache/unpacked").iterdir()) == []


def test_a_changed_byte_in_a_zip_is_found(image_folder: Path):
    path = as_zip(image_folder)
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UserError, match="download or pack it again"):
        FOLDERS.open(path)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"", "an empty file; download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer, .*`git lfs pull`"),
        (b"<!DOCTYPE html><html>", "a web page, not an archive; download it again"),
        (b"7z\xbc\xaf\x27\x1c", r"a 7-Zip archive, which is not read; unpack it by `7z x \S+ -oFOLDER`"),
        (b"Rar!\x1a\x07\x01\0", r"a RAR archive, which is not read; unpack it by `7z x \S+ -oFOLDER`"),
        (b"\x89PNG\r\n\x1a\n", "not a tar, or damaged"),
    ],
)
def test_what_is_no_archive_that_is_read_is_named(tmp_path: Path, start: bytes, words: str):
    (tmp_path / "pictures.tar").write_bytes(start and start + bytes(600))
    with pytest.raises(UserError, match=words):
        FOLDERS.open(tmp_path / "pictures.tar")


@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs zstd")
def test_a_tar_by_zstandard_is_refused_with_the_command_that_helps(image_folder: Path):
    tar = as_tar(image_folder)
    subprocess.run(["zstd", "-q", "--rm", tar], check=True)
    with pytest.raises(UserError, match=r"compressed by Zstandard, which is not read; unpack it by `(.*)`") as raised:
        FOLDERS.open(tar.with_name("pictures.tar.zst"))
    subprocess.run([*str(raised.value).split("`")[1].split(), "-q"], check=True)
    assert FOLDERS.open(tar).counts == WHOLE


def test_two_joined_tars_are_refused_with_the_command_that_helps(image_folder: Path, tmp_path: Path):
    halves = [image_folder / "train", image_folder / "test"]
    joined = b"".join(as_tar(half).read_bytes() for half in halves)
    (tmp_path / "joined.tar").write_bytes(joined)
    with pytest.raises(UserError, match="two tars joined, of which only the first would be read") as raised:
        FOLDERS.open(tmp_path / "joined.tar")
    (tmp_path / "whole").mkdir()
    command = str(raised.value).split("`")[1].replace("FOLDER", "whole")
    subprocess.run(command.split(), cwd=tmp_path, check=True)
    assert in_order(FOLDERS.open(tmp_path / "whole")) == in_order(FOLDERS.open(image_folder))


def test_a_sparse_file_in_a_tar_is_refused(tmp_path: Path):
    """Its bytes do not lie together: what would be read instead is other data."""
    sparse = tmp_path / "train/ant/0.png"
    sparse.parent.mkdir(parents=True)
    with sparse.open("wb") as file:
        file.truncate(1 << 20)
        file.write(b"x" * 4096)
    subprocess.run(["tar", "--sparse", "-cf", "sparse.tar", "train"], cwd=tmp_path, check=True)
    with pytest.raises(UserError, match=r"train/ant/0.png is a sparse file; pack the tar again without --sparse"):
        FOLDERS.open(tmp_path / "sparse.tar")


def test_a_tar_of_a_folder_above_is_read(image_folder: Path):
    """`tar -C PARENT -cf x.tar .` begins with a member called `.`, which is no folder beside the others."""
    subprocess.run(["tar", "-cf", "above.tar", "--exclude=*.tar", "."], cwd=image_folder.parent, check=True)
    assert FOLDERS.open(image_folder.parent / "above.tar").counts == WHOLE
