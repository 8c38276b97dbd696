"""Batches changed by loader processes; and copied ahead to a GPU, in what order, on devices made up and real."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from moe_dist.data.augment.augment import DRAWS, augment
from moe_dist.data.image.crops import RandomCrop
from moe_dist.data.order import uniform
from moe_dist.data.stream.loader import Loader, Wanted, on_device
from moe_dist.settings.augment import AugmentConfig


class Device:
    """Stands for torch.cuda: notes what was asked of it, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.copies = 0
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: self)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self)
        monkeypatch.setattr(Tensor, "to", lambda *given, **named: self._copy(*given, **named))
        monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: self.log.append(f"use {tensor.item()}"))

    def _copy(self, tensor: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
        assert device.type == "cuda" and non_blocking
        self.log.append(f"copy {tensor.item()}")
        return tensor

    def __enter__(self) -> None:
        self.log.append("aside")

    def __exit__(self, *_: object) -> None:
        self.log.append("back")

    def record_event(self) -> str:
        self.copies += 1
        return str(self.copies - 1)

    def wait_event(self, copied: str) -> None:
        self.log.append(f"wait {copied}")


def batches(log: list[str], count: int) -> Iterator[tuple[Tensor, str]]:
    for number in range(count):
        log.append(f"load {number}")
        yield torch.tensor(number), f"beside {number}"


def test_on_a_gpu_the_next_batch_is_copied_before_one_is_given_out(monkeypatch: pytest.MonkeyPatch):
    """Each is waited for by its own event, after which the next may still be under way."""
    device = Device(monkeypatch)
    given = []
    for pixels, beside in on_device(batches(device.log, 2), torch.device("cuda")):
        device.log.append(f"given {pixels.item()}")
        given.append(beside)
    assert given == ["beside 0", "beside 1"]
    copied = [[f"load {number}", "aside", f"copy {number}", "back"] for number in range(2)]
    handed = [[f"wait {number}", f"use {number}", f"given {number}"] for number in range(2)]
    assert device.log == [*copied[0], *copied[1], *handed[0], *handed[1]]


def test_on_a_cpu_nothing_is_read_ahead():
    log: list[str] = []
    first = next(on_device(batches(log, 3), torch.device("cpu")))
    assert first == (torch.tensor(0), "beside 0") and log == ["load 0"]


def test_no_batches_are_no_batches(monkeypatch: pytest.MonkeyPatch):
    device = Device(monkeypatch)
    assert list(on_device(batches(device.log, 0), torch.device("cuda"))) == []


class Pictures:
    """Twenty made-up images of 16 pixels."""

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(1)
        self.pixels = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8, generator=random)

    def uint8(self, samples: np.ndarray, crop: RandomCrop | None = None) -> Tensor:
        return self.pixels[samples]

    def readable(self, samples: np.ndarray) -> np.ndarray:
        return np.ones(len(samples), bool)


@pytest.mark.parametrize("processes", [0, 2])
def test_loaders_change_images_as_the_training_process_would(processes: int):
    """AutoAugment and Cutout (float32), to the bit, also of a sample's second copy in the epoch."""
    changes = AugmentConfig(pad_crop=4, flip=True, policy="autoaugment_cifar10", cutout=0.5)
    pictures, loader = Pictures(), Loader(processes)
    number = loader.add(pictures, 7, None, changes)
    wanted: list[Wanted] = [
        (epoch, np.array([3, 9, 3, 19]), np.array([0, 0, 1, 0])) for epoch in range(4) for _ in range(2)
    ]
    for (epoch, samples, repeats), (pixels, readable) in zip(wanted, loader.load(number, wanted), strict=True):
        draws = uniform(7, epoch, samples, DRAWS, repeats)
        expected = augment(pictures.uint8(samples), changes, draws)
        assert pixels.dtype == torch.float32 and torch.equal(pixels, expected) and readable.all()
        assert not torch.equal(pixels[0], pixels[2])


@pytest.mark.gpu
def test_batches_reach_a_real_gpu_whole_and_in_order():
    host = [torch.full((64, 3, 224, 224), number, dtype=torch.uint8).pin_memory() for number in range(20)]
    seen = [
        pixels.to(torch.int64).sum().item() for pixels, _ in on_device(((h, 0) for h in host), torch.device("cuda"))
    ]
    assert seen == [number * 64 * 3 * 224 * 224 for number in range(20)]
