"""Sample images stand under their classes as they are."""

from __future__ import annotations

import numpy as np

from moe_dist.plots.profile import GAP, sample_images
from moe_dist.plots.style import style


def test_images_of_a_class_stand_side_by_side_under_its_name_and_gaps_are_clear() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), np.uint8)
    labels = np.array([2, 2, 2, 0])
    with style():
        figure = sample_images("s", images, labels, ["ant", "bee", "cat"])
    shown = {axes.get_title("left"): np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images}
    assert list(shown) == ["cat", "ant"]
    second = shown["cat"][:, 8 + GAP : 16 + GAP]
    assert (second[..., :3] == images[1].transpose(1, 2, 0)).all() and (second[..., 3] == 255).all()
    assert (shown["cat"][:, 8 : 8 + GAP, 3] == 0).all() and (shown["ant"][:, 8:, 3] == 0).all()
