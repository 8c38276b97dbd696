"""methods/gmm_moe/kept.py: maps of a frozen backbone, kept by image in files that runs share."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moe_dist.methods.gmm_moe.kept import CHUNK, GIB, KeptMaps, backbone_digest, in_chunks

IMAGES, ROW = 70, 3 * 4 * 4 * 4 + 3 * 2 * 2 * 2
CPU = torch.device("cpu")


class Backbone:
    """Counts the images that it sees."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Tensor) -> list[Tensor]:
        self.seen += len(images)
        return [images[:, :, ::2, ::2], images[:, :, ::4, ::4].bfloat16()]


@pytest.fixture(name="images")
def made_images() -> Tensor:
    return torch.randn(IMAGES, 3, 8, 8, generator=torch.manual_seed(0))


@pytest.fixture(name="samples")
def their_numbers() -> Tensor:
    return torch.randperm(1000, generator=torch.manual_seed(1))[:IMAGES]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(left, right, strict=True))


def test_maps_do_not_depend_on_who_is_in_the_batch() -> None:
    backbone = torch.nn.Conv2d(3, 4, 3).eval()
    images = torch.randn(70, 3, 8, 8)
    found = in_chunks(lambda each: [backbone(each)], images)[0]
    order = torch.randperm(70)
    assert torch.equal(in_chunks(lambda each: [backbone(each)], images[order])[0], found[order])
    assert torch.equal(in_chunks(lambda each: [backbone(each)], images[:5])[0], found[:5])


@pytest.mark.parametrize(("room", "again"), [(IMAGES, 0), (IMAGES - 1, CHUNK), (IMAGES - CHUNK - 1, 2 * CHUNK)])
@pytest.mark.parametrize("shared", [False, True])
def test_maps_are_kept_as_far_as_there_is_room(
    images: Tensor, samples: Tensor, room: int, again: int, shared: bool, tmp_path: Path
) -> None:
    backbone = Backbone()
    kept = KeptMaps(tmp_path if shared else None, room * ROW / GIB)
    expected = backbone(images)
    assert same(kept.maps(backbone, images, samples), expected)
    backbone.seen = 0
    assert same(kept.maps(backbone, images, samples), expected)
    assert backbone.seen == again


def test_a_later_run_computes_none_of_them_again(images: Tensor, samples: Tensor, tmp_path: Path) -> None:
    """It knows images by their pixels: their numbers may be others."""
    expected = KeptMaps(tmp_path, 1).maps(Backbone(), images, samples)
    later, order = Backbone(), torch.randperm(IMAGES)
    kept = KeptMaps(tmp_path, 1)
    assert same(kept.maps(later, images[order], torch.arange(IMAGES)), [each[order] for each in expected])
    assert later.seen == CHUNK  # to learn the maps' shapes
    assert len(list(tmp_path.iterdir())) == 2


def test_two_at_once_write_files_of_their_own(images: Tensor, samples: Tensor, tmp_path: Path) -> None:
    one, other = KeptMaps(tmp_path, 1), KeptMaps(tmp_path, 1)
    half = IMAGES // 2
    for number in range(2):
        for begin, kept in ((0, one), (half, other)):
            part = slice(begin + number * 10, begin + number * 10 + 10)
            kept.maps(Backbone(), images[part], samples[part])
    assert len(list(tmp_path.glob("*.maps"))) == 2
    later = Backbone()
    seen = torch.cat([torch.arange(20), half + torch.arange(20)])
    assert same(KeptMaps(tmp_path, 0).maps(later, images[seen], samples[seen]), Backbone()(images[seen]))
    assert later.seen == CHUNK


def test_two_at_work_at_once_compute_each_map_once(images: Tensor, samples: Tensor, tmp_path: Path) -> None:
    """The second one waits while the first computes, and then finds what that one has left."""
    begun, seen = threading.Event(), Backbone()

    def slow(images: Tensor) -> list[Tensor]:
        maps = Backbone()(images)
        if len(one._shapes):  # no longer to learn the maps' shapes
            begun.set()
            second.join(0.5)
        return maps

    one, other = KeptMaps(tmp_path, 1, "train"), KeptMaps(tmp_path, 1, "train")
    other.maps(Backbone(), images[-1:], samples[-1:])
    found: list[list[Tensor]] = []
    second = threading.Thread(target=lambda: begun.wait() and found.append(other.maps(seen, images[:40], samples[:40])))
    second.start()
    expected = one.maps(slow, images[:40], samples[:40])
    second.join()
    assert same(found[0], expected) and seen.seen == 0
    assert len(list(tmp_path.glob("*.lock"))) == 0


@pytest.mark.parametrize("damage", ["a byte", "maps cut", "index cut"])
def test_damaged_rows_are_computed_again(images: Tensor, samples: Tensor, damage: str, tmp_path: Path) -> None:
    expected = KeptMaps(tmp_path, 1).maps(Backbone(), images, samples)
    path = next(tmp_path.glob("*.index" if damage == "index cut" else "*.maps"))
    content = bytearray(path.read_bytes())
    if damage == "a byte":
        content[3 * ROW + 5] ^= 1
    else:
        del content[-10:]
    path.write_bytes(content)
    for seen in (2 * CHUNK, CHUNK):  # the second time it is whole again
        later = Backbone()
        assert same(KeptMaps(tmp_path, 1).maps(later, images, samples), expected)
        assert later.seen == seen


def test_other_weights_taps_and_precision_have_other_maps() -> None:
    network = torch.nn.Conv2d(3, 4, 3)
    digests = [backbone_digest(network, "net", ("a", "b"), CPU) for _ in range(2)]
    digests += [backbone_digest(network, "net", ("b", "a"), CPU), backbone_digest(network, "other", ("a", "b"), CPU)]
    with torch.autocast("cpu", torch.bfloat16):
        digests.append(backbone_digest(network, "net", ("a", "b"), CPU))
    with torch.no_grad():
        network.bias[0] += 1
    digests.append(backbone_digest(network, "net", ("a", "b"), CPU))
    assert digests[0] == digests[1] and len(set(digests)) == 5
