"""What benchmarks/stream.py compares: our stream and other loaders, over the same images.

Every contender is a function that starts one pass over a case's training images and yields normalised float32 batches
[B, 3, S, S]. The others use Pillow and torchvision, as their guides show. litdata and mosaicml-streaming take part
where they are installed (`pip install litdata mosaicml-streaming`): their sets hold the same encoded images.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import simplejpeg
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from moe_dist.data.batch import TrainingSet
from moe_dist.data.image.crops import CROP_DRAWS, RandomCrop, Region
from moe_dist.data.image.decode import decode, decode_resized, image_size
from moe_dist.data.opened.images import open_images
from moe_dist.data.order import CROPS, uniform
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.data.stream.stream import Stream
from moe_dist.settings.augment import AugmentConfig
from moe_dist.settings.data import DataConfig
from moe_dist.vision import torchvision

BATCH = 64
CROP_SCALE = (0.08, 1.0)
Epoch = Callable[[], Iterable[object]]
Changes = Literal["none", "random crop", "cifar"]


@dataclass(frozen=True)
class Stored:
    """A case's images on disk, and what is made of them: squares of `size` pixels, changed or not.

    folder: images/train/<class>/* and our shards/train of the same; workers: loader processes, 0 for none.
    """

    folder: Path
    shards: ShardSet
    kind: str
    size: int
    changes: Changes
    workers: int

    @property
    def encoded(self) -> list[bytes]:
        """The images as they are stored."""
        return [self.shards.read(sample) for sample in range(len(self.shards))]


def contenders(stored: Stored) -> dict[str, Epoch]:
    """The contenders of a case, by name."""
    found = {"ours, disk": ours(stored, "each_time"), "ours, memory": ours(stored, "once")}
    if stored.changes != "cifar":
        found |= floors(stored)
    found |= {"WebDataset": web_dataset(stored), "ImageFolder": image_folder(stored)}
    if find_spec("litdata"):
        found["litdata"] = lit_data(stored)
    if find_spec("streaming"):
        found["mosaicml-streaming"] = mosaic_streaming(stored)
    return found


def ours(stored: Stored, decoded: Literal["once", "each_time"]) -> Epoch:
    """Our stream, shuffled; always its first epoch."""
    config = DataConfig(image_size=stored.size, decode=decoded, loader_workers=stored.workers)
    augment = {
        "none": None,
        "random crop": AugmentConfig(resized_crop=CROP_SCALE),
        "cifar": AugmentConfig(pad_crop=4, flip=True, policy="autoaugment_cifar10", cutout=0.5),
    }[stored.changes]
    images = open_images(stored.shards, config, stored.folder / "cache")
    everything = TrainingSet(np.arange(len(stored.shards)), stored.shards.labels)
    stream = Stream(images, everything, config, seed=0, global_batch=BATCH, rank=0, ranks=1, augment=augment)
    return stream.epoch


class Work(Dataset[int]):
    """Encoded images in memory, each worked on and dropped, in batches."""

    def __init__(self, encoded: list[bytes], work: Callable[[int, bytes], object]) -> None:
        self._encoded = encoded
        self._work = work

    def __len__(self) -> int:
        return -(-len(self._encoded) // BATCH)

    def __getitem__(self, batch: int) -> int:
        first = batch * BATCH
        for number, data in enumerate(self._encoded[first : first + BATCH], start=first):
            self._work(number, data)
        return batch


def floors(stored: Stored) -> dict[str, Epoch]:
    """What no loader with our decoder can beat: decoding alone, and with the cut and the resize that are asked for."""
    encoded = stored.encoded
    regions: list[Region | None] = [None] * len(encoded)
    if stored.changes == "random crop":
        draws = uniform(0, 0, np.arange(len(encoded)), CROP_DRAWS, purpose=CROPS)
        crop = RandomCrop(CROP_SCALE, draws)
        regions = [crop.region(number, (0, 0, *image_size(data))) for number, data in enumerate(encoded)]
    whole = simplejpeg.decode_jpeg if stored.kind == "jpg" else decode
    return {
        "decode only": _loader(Work(encoded, lambda _, data: whole(data)), None, stored.workers),
        "decode, cut, resize": _loader(
            Work(encoded, lambda number, data: decode_resized(data, stored.size, regions[number])), None, stored.workers
        ),
    }


def transform(stored: Stored) -> Callable:
    """What a torchvision user writes, from a Pillow image to a normalised tensor."""
    v2, size = torchvision().transforms.v2, stored.size
    changes = {
        "none": [v2.Resize((size, size))],
        "random crop": [v2.RandomResizedCrop(size, CROP_SCALE)],
        "cifar": [
            v2.RandomCrop(size, padding=4),
            v2.RandomHorizontalFlip(),
            v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
        ],
    }[stored.changes]
    plain = torchvision().transforms
    last = [plain.ToTensor(), plain.Normalize((0.5,) * 3, (0.5,) * 3)]  # faster than v2's own three steps
    cutout = [v2.RandomErasing(1.0, (0.25, 0.25), (1.0, 1.0))] if stored.changes == "cifar" else []
    return v2.Compose([*changes, *last, *cutout])


def web_dataset(stored: Stored) -> Epoch:
    """WebDataset's pipeline over our shards, in the order of the files."""
    paths = sorted(str(path) for path in (stored.folder / "shards" / "train").glob("*.tar"))
    plain = webdataset.WebDataset(paths, shardshuffle=False).decode("pil").to_tuple(stored.kind, "cls")
    return _loader(plain.map_tuple(transform(stored), int).batched(BATCH), None, stored.workers)


def image_folder(stored: Stored) -> Epoch:
    """torchvision's ImageFolder in a DataLoader, in the order of the files."""
    pictures = torchvision().datasets.ImageFolder(stored.folder / "images" / "train", transform(stored))
    return _loader(pictures, BATCH, stored.workers)


def _loader(pictures: Dataset, batch_size: int | None, workers: int) -> Epoch:
    made = DataLoader(pictures, batch_size=batch_size, num_workers=workers, persistent_workers=workers > 0)
    return lambda: made


def _unpacked(change: Callable, sample: dict[str, Any]) -> tuple[Any, int]:
    return change(Image.open(io.BytesIO(sample["image"])).convert("RGB")), sample["label"]


def lit_data(stored: Stored) -> Epoch:
    """litdata's StreamingDataset in its own loader, in the order of the files."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    place = stored.folder / "litdata"
    if not place.exists():
        place.mkdir()
        writer = BinaryWriter(str(place), chunk_bytes="64MB")
        for number, data in enumerate(stored.encoded):
            writer[number] = {"image": data, "label": int(stored.shards.labels[number])}
        writer.done()
        writer.merge()
    pictures = StreamingDataset(str(place), transform=partial(_unpacked, transform(stored)))
    made = StreamingDataLoader(pictures, batch_size=BATCH, num_workers=stored.workers)
    return lambda: made


def mosaic_streaming(stored: Stored) -> Epoch:
    """mosaicml-streaming's StreamingDataset in a DataLoader, in the order of the files."""
    from streaming import MDSWriter, StreamingDataset

    class Pictures(StreamingDataset):
        def __getitem__(self, number: int) -> tuple[Any, int]:
            return _unpacked(change, super().__getitem__(number))

    change, place = transform(stored), stored.folder / "mosaic"
    if not place.exists():
        with MDSWriter(out=str(place), columns={"image": "bytes", "label": "int"}) as writer:
            for number, data in enumerate(stored.encoded):
                writer.write({"image": data, "label": int(stored.shards.labels[number])})
    return _loader(Pictures(local=str(place), batch_size=BATCH, shuffle=False), BATCH, stored.workers)
