"""What a run keeps of its training images for its report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_jobs import traditional

from moe_dist.data.opened.job_shards import ensure_shards
from moe_dist.data.opened.opened import OpenedData, open_data
from moe_dist.places import SAMPLE_IMAGES
from moe_dist.run.sample_images import LARGEST_SIDE, OF_A_CLASS, keep_sample_images


def opened(cache: Path, **data: object) -> OpenedData:
    job = traditional(data={"dataset": "digits", "max_train_images": 300, "max_test_images": 60} | data)
    return open_data(job.data, job.seed, cache, ensure_shards(job.data, cache))


def kept(data: OpenedData, run: Path) -> tuple[np.ndarray, np.ndarray]:
    keep_sample_images(data, run)
    with np.load(run / SAMPLE_IMAGES, allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]


def test_a_few_training_images_of_each_class_are_kept(tmp_path: Path) -> None:
    data = opened(tmp_path / "cache", image_size=16)
    images, labels = kept(data, tmp_path)
    assert images.shape == (10 * OF_A_CLASS, 3, 16, 16) and images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [OF_A_CLASS] * 10
    first = data.train_samples[data.train.labels[data.train_samples] == labels[0]][0]
    assert (images[0] == data.train.images.uint8(np.array([first]))[0].numpy()).all()


def test_large_images_are_made_small(tmp_path: Path) -> None:
    images, _ = kept(opened(tmp_path / "cache", image_size=96), tmp_path)
    assert images.shape[1:] == (3, LARGEST_SIDE, LARGEST_SIDE)


@pytest.mark.parametrize("decode", ["once", "each_time"])
def test_an_image_that_cannot_be_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decode: str) -> None:
    data = opened(tmp_path / "cache", image_size=16, decode=decode)
    monkeypatch.setattr(type(data.train.images), "readable", lambda self, samples: np.arange(len(samples)) > 0)
    images, labels = kept(data, tmp_path)
    assert len(images) == len(labels) == 10 * OF_A_CLASS - 1
