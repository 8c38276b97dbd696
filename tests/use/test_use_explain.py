"""Pictures of where experts look, beside the images that are predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_jobs import quiet
from trained_models import JOBS, TrainedModels, samples_of

import moe_dist
from moe_dist.errors import UserError
from moe_dist.use.explain import picture_name, side_by_side
from moe_dist.use.predict import predict_inputs


def test_a_map_hides_the_image_where_it_is_large_and_nowhere_else() -> None:
    """Of an expert that looks at the right half, the left half is the image."""
    image = np.full((96, 96, 3), 100, np.uint8)
    maps = np.zeros((2, 4, 4), np.float32)
    maps[1, :, 3] = 2.0
    picture = side_by_side(image, maps)
    assert picture.shape == (96, 3 * 96, 3)
    assert (picture[:, : 2 * 96 + 48] == 100).all() and (picture[:, -8:] != 100).any()
    assert side_by_side(image[:10, :10], maps).shape == (100, 300, 3)  # ten times as large


def test_every_image_has_a_picture_of_its_own_name(trained: TrainedModels, tmp_path: Path) -> None:
    (tmp_path / "images" / "deep").mkdir(parents=True)
    for name, image in zip(("a.png", "deep/b.png"), samples_of(JOBS["icl"])):
        (tmp_path / "images" / name).write_bytes(image)
    (tmp_path / "images" / "bad.png").write_bytes(b"")
    model = moe_dist.load(trained.run("icl"))
    predict_inputs(model, [tmp_path / "images"], quiet(), out=tmp_path / "rows.csv", explain=tmp_path / "maps")
    pictures = sorted(path.relative_to(tmp_path / "maps") for path in (tmp_path / "maps").rglob("*.png"))
    assert pictures == sorted(picture_name(f"{tmp_path}/images/{name}") for name in ("a.png", "deep/b.png"))
    width, height = Image.open(tmp_path / "maps" / pictures[0]).size
    assert (width, height) == (3 * 96, 96)  # the image, and two experts


def test_names_of_pictures_stay_below_the_folder() -> None:
    assert picture_name("../../a.jpg") == Path("a.jpg.png")
    assert picture_name("s3://bucket/x/a.jpg") == Path("s3/bucket/x/a.jpg.png")
    assert picture_name("/home/x/a.jpg") == Path("home/x/a.jpg.png")


def test_a_model_without_maps_says_so(trained: TrainedModels, tmp_path: Path) -> None:
    model = moe_dist.load(trained.run("traditional_moe"))
    (tmp_path / "a.png").write_bytes(samples_of(JOBS["traditional_moe"])[0])
    with pytest.raises(UserError, match="traditional_moe shows no maps of where its experts look"):
        predict_inputs(model, [tmp_path / "a.png"], quiet(), explain=tmp_path / "maps")
