"""Packs what a machine without a network lacks into one folder: the images of CIFAR-100-LT and wheels."""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import re
import subprocess
import sys
import tarfile
from pathlib import Path

from moe_dist.data.datasets.catalog import open_contents
from moe_dist.data.datasets.samples import Contents
from moe_dist.data.longtail import LongTail
from moe_dist.errors import UserError

FOLDER = Path(".on_gpu")
IMAGES = "cifar100_lt100.tar.gz"
MOST_MIB = 60
WHEELS = ["annotated-types", "braceexpand", "pydantic", "pydantic-core", "simplejpeg", "typing-inspection"]
WHEELS += ["webdataset"]
"""What the package imports and machines with torch seldom have."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")


def prepare(arguments: list[str]) -> None:
    """Write the folder, tell its size, and end with a sentence where it is too large."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.on_gpu prepare", description=__doc__)
    parser.add_argument("--source", type=Path, help="CIFAR-100, as moe-dist reads it; without it no images are packed")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--python", default="3.12", help="the version on the machine with the GPU")
    parser.add_argument("--no-wheels", action="store_true")
    choices = ("auto", "first", "random")
    parser.add_argument("--choice", default="auto", choices=choices, help="which images a class keeps")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.source is not None:
        packed = pack_images(options.source, options.choice, options.folder / IMAGES)
        print(f"{packed:,} images in {options.folder / IMAGES}")
    if not options.no_wheels:
        fetch_wheels(options.folder / "wheels", options.python)
    size = sum(path.stat().st_size for path in options.folder.rglob("*") if path.is_file()) / 2**20
    print(f"{options.folder}: {size:.1f} MiB")
    if size > MOST_MIB:
        raise UserError(f"{options.folder}: {size:.1f} MiB, more than {MOST_MIB}; remove what is not of this step")


def pack_images(source: Path, choice: str, target: Path, imbalance: float = 100) -> int:
    """Write the images of CIFAR-100-LT as train|test/<class>/*; the number of them.

    They are compressed for their headers: a tar pads every small file to twice its size.
    """
    contents = open_contents("cifar100", source, LongTail(imbalance, choice))  # type: ignore[arg-type]
    numbers = [(split, number) for split, count in contents.counts.items() for number in range(count)]
    with tarfile.open(target, "w:gz", compresslevel=6) as tar:
        for split, number in numbers:
            _add(tar, contents, split, number)
    return len(numbers)


def _add(tar: tarfile.TarFile, contents: Contents, split: str, number: int) -> None:
    sample = contents.sample(split, number)
    name = re.sub(r"[^A-Za-z0-9_-]", "_", contents.class_names[sample.label].lstrip("0123456789_"))
    info = tarfile.TarInfo(f"{split}/{sample.label:03d}_{name}/{number:06d}.{sample.extension}")
    info.size = len(sample.image)
    tar.addfile(info, io.BytesIO(sample.image))


def fetch_wheels(folder: Path, python: str) -> None:
    """Download the wheels of the versions that are installed here."""
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in WHEELS]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), "--python-version", python, "--implementation", "cp"]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    subprocess.run([*command, *wanted], check=True)
    print(f"{len(wanted)} wheels in {folder}")
