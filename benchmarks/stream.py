"""How fast batches arrive: our stream beside decoding alone and beside other loaders, on the same images.

    python benchmarks/stream.py [--workers 0] [--batches 2] [--rounds 5]

The images are made here: scans of digits, blown up, coloured and mixed with sensor noise, so that they compress about
as photographs do. Every contender (stream_contenders.py) delivers normalised float32 batches [B, 3, S, S] from a warm
cache. Ours reads in shuffled order, the others in the order of their files, which is faster for them. "random crop" is
RandomResizedCrop with 8 to 100 % of the area; "CIFAR" is padding and cropping, flip, AutoAugment and Cutout.

With --workers 0 all work is done in this process on one thread, and rates are images per second of its CPU time, so
that other programs on the machine do not count. With --workers 1 every loader decodes in one process of its own, as in
training, and the clock is the wall's: for a quiet machine. The contenders take turns; the median round is reported.

There are two floors of any loader with our decoder; both take encoded images out of memory and drop what they made.
"decode only" decodes at full size. A loader that delivers at most half the stored size can come near it, because a JPEG
decoded at half its size saves about what resizing costs; one that delivers 224 of 375 pixels cannot: it needs the full
decode, and the antialiased resize alone takes a quarter of that decode's time again.
"decode, cut, resize" is the same work on the same images as ours: what is left of ours is reading, checking, collecting
and normalising.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from PIL import Image
from sklearn.datasets import load_digits
from stream_contenders import BATCH, Changes, Epoch, Stored, contenders

from moe_dist.data.shards.build.build import build_shards
from moe_dist.data.shards.shard_set import ShardSet

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "pillow", "simplejpeg", "imagecodecs", "webdataset", "litdata", "mosaicml-streaming")
_LOADERS = ("WebDataset", "ImageFolder", "litdata", "mosaicml-streaming")


@dataclass(frozen=True)
class Pictures:
    """Images to be stored: how many, of which size in pixels, in which format."""

    height: int
    width: int
    kind: str
    images: int


@dataclass(frozen=True)
class Case:
    """Stored images, the size and changes they are delivered with, and which of our two ways is judged."""

    name: str
    pictures: Pictures
    deliver: int
    changes: Changes = "none"
    judged: str = "ours, disk"


def cases(batches: int) -> list[Case]:
    """The rows of the tables; of small images there are five times as many."""
    tiny = Pictures(32, 32, "png", 5 * BATCH * batches)
    large = Pictures(375, 500, "jpg", BATCH * batches)
    return [
        Case("32x32 PNG", tiny, 32),
        Case("32x32 PNG, CIFAR", tiny, 32, "cifar", "ours, memory"),
        Case("48x48 JPEG", Pictures(48, 48, "jpg", 5 * BATCH * batches), 48),
        Case("500x375 JPEG to 128", large, 128),
        Case("500x375 JPEG to 224", large, 224),
        Case("500x375, random crop 224", large, 224, "random crop"),
    ]


def picture(rng: np.random.Generator, scans: np.ndarray, height: int, width: int) -> Image.Image:
    """A made-up photograph: three digit scans as colour channels, blown up smoothly, with noise."""
    channels = scans[rng.integers(0, len(scans), 3)] * (200 / 16) + rng.uniform(0, 50, (3, 1, 1))
    smooth = Image.fromarray(channels.transpose(1, 2, 0).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(smooth) + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def store(pictures: Pictures, folder: Path) -> None:
    """images/{train,test}/<class>/*, in four classes, a few of them as the test split; and shards/ of the same."""
    rng, scans = np.random.default_rng(0), load_digits().images
    for number in range(pictures.images + 4):
        split = "train" if number < pictures.images else "test"
        of_class = folder / "images" / split / f"class{number % 4}"
        of_class.mkdir(parents=True, exist_ok=True)
        made = picture(rng, scans, pictures.height, pictures.width)
        made.save(of_class / f"{number:05d}.{pictures.kind}", quality=93)  # PNG has no quality and is lossless
    build_shards("image_folder", folder / "images", folder / "shards")


def measure(epochs: dict[str, Epoch], images: int, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median images per second by `clock` of each contender, after one round to warm up."""
    rates: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(rounds + 1):
        for name, epoch in epochs.items():
            start = clock()
            for _ in epoch():
                pass
            rates[name].append(images / (clock() - start))
    return {name: statistics.median(of_contender[1:]) for name, of_contender in rates.items()}


def main() -> None:
    """Run every case, print tables and write results/stream.json or results/stream_one_worker.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=2, help="of large images; of small ones five times as many")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, choices=(0, 1), default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured_on = machine()
    clock = time.perf_counter if arguments.workers else time.process_time
    rows = cases(arguments.batches)
    rates = {}
    with tempfile.TemporaryDirectory() as root:
        for case in rows:
            folder = Path(root) / f"{case.pictures.height}.{case.pictures.kind}"
            if not folder.exists():
                store(case.pictures, folder)
            shards = ShardSet.open(folder / "shards" / "train")
            stored = Stored(folder, shards, case.pictures.kind, case.deliver, case.changes, arguments.workers)
            rates[case.name] = measure(contenders(stored), case.pictures.images, arguments.rounds, clock)
    report(rows, rates, arguments.workers, measured_on)


def report(rows: list[Case], rates: dict[str, dict[str, float]], workers: int, measured_on: dict[str, Any]) -> None:
    """Print images per second and our ratios to the others; write both with what they were measured on.

    measured_on: the machine as it was before the run, under other programs alone.
    """
    ratios = {
        case.name: {
            name: rates[case.name][case.judged] / rate
            for name, rate in rates[case.name].items()
            if not name.startswith("ours")
        }
        for case in rows
    }
    versions = {package: installed(package) for package in PACKAGES}
    print(", ".join(f"{package} {found or 'absent'}" for package, found in versions.items()))
    print_table("images/s", rates, decimals=0)
    print_table("ours / theirs", ratios, decimals=2)
    for case, of_case in ratios.items():
        behind = [name for name in _LOADERS if of_case.get(name, 2) < 1]
        print(f"{case}: {'behind ' + ', '.join(behind) if behind else 'first of all loaders'}")
    RESULTS.mkdir(exist_ok=True)
    content = {
        "unit": f"images per second of {'wall time' if workers else 'CPU time, one process and thread'}",
        "workers": workers,
        "batch": BATCH,
        **measured_on,
        "versions": versions,
        "judged": {case.name: case.judged for case in rows},
        "rates": rounded(rates, 1),
        "ratios": rounded(ratios, 2),
    }
    name = "stream_one_worker.json" if workers else "stream.json"
    (RESULTS / name).write_text(json.dumps(content, indent=1) + "\n")


def installed(package: str) -> str | None:
    """The installed version of `package`, None where it is absent."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def print_table(title: str, rows: dict[str, dict[str, float]], decimals: int) -> None:
    """One line per case, one column per name; a dash where a case has no such contender."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    print(f"{title:<26}" + "".join(f"{name:>20}" for name in names))
    for case, row in rows.items():
        cells = [f"{row[name]:.{decimals}f}" if name in row else "-" for name in names]
        print(f"{case:<26}" + "".join(f"{cell:>20}" for cell in cells))


def rounded(rows: dict[str, dict[str, float]], decimals: int) -> dict[str, dict[str, float]]:
    """`rows` with every value rounded."""
    return {case: {name: round(value, decimals) for name, value in row.items()} for case, row in rows.items()}


if __name__ == "__main__":
    main()
