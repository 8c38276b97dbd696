"""How fast batches arrive: our stream beside plain WebDataset and torchvision's ImageFolder, on the same images.

    python benchmarks/stream.py [--workers 0] [--batches 6] [--rounds 9]

The images are made here: scans of digits, blown up, coloured and mixed with sensor noise, so that they compress about
as photographs do. Every contender delivers normalised float32 batches [B, 3, S, S] from a warm cache, and does nothing
else: no augmentation. Ours reads in shuffled order, the others in the order of their files, which is faster for them.
With --workers 0 all work is done in this process on one thread, and rates are images per second of its CPU time, so
that other programs on the machine do not count. With --workers 1 every loader decodes in one process of its own, as in
training, and the clock is the wall's: for a quiet machine. The contenders take turns; the median round is reported.

"decode only" is the floor of any loader with our decoder: the same encoded images, out of memory, decoded at full size
and dropped; nothing is read, resized or put into batches. A loader that delivers at most half the stored size can come
near it, because a JPEG decoded at half its size saves about what resizing costs. One that delivers 224 of 375 pixels
cannot: it needs the full decode, and the antialiased resize alone takes a quarter of that decode's time again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import simplejpeg
import torch
import webdataset
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset

from moe_dist.config import DataConfig
from moe_dist.data.decode import decode
from moe_dist.data.images import open_images
from moe_dist.data.shards import ShardSet, build_shards
from moe_dist.data.stream import Stream
from moe_dist.methods.base import TrainingSet
from moe_dist.vision import torchvision

BATCH = 64
RESULTS = Path(__file__).parent / "results"
Epoch = Callable[[], Iterable[object]]


@dataclass(frozen=True)
class Case:
    """Stored images and the size they are delivered at, in pixels."""

    name: str
    height: int
    width: int
    kind: str
    deliver: int
    images: int


class DecodeOnly(Dataset[int]):
    """Batches of encoded images, decoded and dropped."""

    def __init__(self, encoded: list[bytes], decode: Callable[[bytes], np.ndarray]) -> None:
        self._batches = [encoded[start : start + BATCH] for start in range(0, len(encoded), BATCH)]
        self._decode = decode

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> int:
        for data in self._batches[number]:
            self._decode(data)
        return number


def picture(rng: np.random.Generator, scans: np.ndarray, height: int, width: int) -> Image.Image:
    """A made-up photograph: three digit scans as colour channels, blown up smoothly, with noise."""
    channels = scans[rng.integers(0, len(scans), 3)] * (200 / 16) + rng.uniform(0, 50, (3, 1, 1))
    smooth = Image.fromarray(channels.transpose(1, 2, 0).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(smooth) + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def write_images(case: Case, root: Path) -> None:
    """{train,test}/<class>/*: the case's images in four classes, a few of them as the test split."""
    rng, scans = np.random.default_rng(0), load_digits().images
    for number in range(case.images + 4):
        split = "train" if number < case.images else "test"
        folder = root / split / f"class{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        made = picture(rng, scans, case.height, case.width)
        made.save(folder / f"{number:05d}.{case.kind}", quality=93)  # PNG has no quality and is lossless


def plain_transform(size: int) -> Callable:
    """What a torchvision user writes: resize, to tensor, normalise."""
    transforms = torchvision.transforms
    return transforms.Compose(
        [transforms.Resize((size, size)), transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    )


def contenders(case: Case, folder: Path, workers: int) -> dict[str, Epoch]:
    """One pass over the training images by each contender."""
    write_images(case, folder / "images")
    build_shards("image_folder", folder / "images", folder / "shards")
    shards = ShardSet.open(folder / "shards" / "train")
    encoded = [shards.read(sample) for sample in range(len(shards))]
    paths = sorted(str(path) for path in (folder / "shards" / "train").glob("*.tar"))
    transform = plain_transform(case.deliver)
    pictures = torchvision.datasets.ImageFolder(folder / "images" / "train", transform)
    whole = simplejpeg.decode_jpeg if case.kind == "jpg" else decode

    def ours(hold: Literal["memory", "disk"]) -> Epoch:
        config = DataConfig(image_size=case.deliver, hold=hold, loader_workers=workers)
        images = open_images(shards, config, folder / "cache")
        everything = TrainingSet(np.arange(len(shards)), shards.labels)
        stream = Stream(images, everything, config, seed=0, global_batch=BATCH, rank=0, world=1)
        return stream.epoch

    plain = webdataset.WebDataset(paths, shardshuffle=False).decode("pil").to_tuple(case.kind, "cls")
    plain_batches = plain.map_tuple(transform, int).batched(BATCH)

    def loader(pictures: Dataset, batch_size: int | None) -> Epoch:
        made = DataLoader(pictures, batch_size=batch_size, num_workers=workers, persistent_workers=workers > 0)
        return lambda: made

    return {
        "ours, disk": ours("disk"),
        "decode only": loader(DecodeOnly(encoded, whole), None),
        "ours, memory": ours("memory"),
        "WebDataset": loader(plain_batches, None),
        "ImageFolder": loader(pictures, BATCH),
    }


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
    parser.add_argument("--batches", type=int, default=6, help="of large images; of small ones five times as many")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, choices=(0, 1), default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    small, large = 5 * BATCH * arguments.batches, BATCH * arguments.batches
    cases = [
        Case("32x32 PNG", 32, 32, "png", 32, small),
        Case("48x48 JPEG", 48, 48, "jpg", 48, small),
        Case("500x375 JPEG to 128", 375, 500, "jpg", 128, large),
        Case("500x375 JPEG to 224", 375, 500, "jpg", 224, large),
    ]
    clock = time.perf_counter if arguments.workers else time.process_time
    results = {}
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            results[case.name] = measure(
                contenders(case, Path(folder), arguments.workers), case.images, arguments.rounds, clock
            )
    report(results, arguments.workers, load)


def report(rates: dict[str, dict[str, float]], workers: int, load: float) -> None:
    """Print images per second and our disk path's ratios to the others; write both with what they were measured on.

    load: the machine's load average before the run, of other programs alone.
    """
    ratios = {
        case: {f"disk / {name}": of["ours, disk"] / of[name] for name in ("WebDataset", "ImageFolder", "decode only")}
        for case, of in rates.items()
    }
    print_table("images/s", rates, decimals=0)
    print_table("ratio", ratios, decimals=2)
    RESULTS.mkdir(exist_ok=True)
    clock = "wall time" if workers else "CPU time, one process and thread"
    content = {
        "unit": f"images per second of {clock}",
        "workers": workers,
        "batch": BATCH,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_before": round(load, 1),
        "torch": torch.__version__,
        "webdataset": webdataset.__version__,
        "rates": rounded(rates, 1),
        "ratios": rounded(ratios, 2),
    }
    name = "stream_one_worker.json" if workers else "stream.json"
    (RESULTS / name).write_text(json.dumps(content, indent=1) + "\n")


def print_table(title: str, rows: dict[str, dict[str, float]], decimals: int) -> None:
    """One line per case, one column per name."""
    names = next(iter(rows.values()))
    print(f"{title:<22}" + "".join(f"{name:>20}" for name in names))
    for case, row in rows.items():
        print(f"{case:<22}" + "".join(f"{value:>20.{decimals}f}" for value in row.values()))


def rounded(rows: dict[str, dict[str, float]], decimals: int) -> dict[str, dict[str, float]]:
    """`rows` with every value rounded."""
    return {case: {name: round(value, decimals) for name, value in row.items()} for case, row in rows.items()}


if __name__ == "__main__":
    main()
