"""Images as the networks of the steps before training see them: augmented, or only normalised.

Letters in shapes: B samples of a batch, S image side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from moe_dist.data.augment.augment import DRAWS, augment, normalise
from moe_dist.data.batch import Images
from moe_dist.data.image.crops import CROP_DRAWS, RandomCrop
from moe_dist.data.opened.images import cropped
from moe_dist.data.order import CROPS, uniform
from moe_dist.settings.augment import AugmentConfig
from moe_dist.settings.data import DataConfig

IMAGES_AT_ONCE = 512


@dataclass(frozen=True)
class Views:
    """Images of a training set with the job's normalisation. Random changes follow from (seed, draw, sample)."""

    images: Images
    data: DataConfig
    seed: int

    def augmented(self, images: Tensor, samples: np.ndarray, draw: int, config: AugmentConfig) -> Tensor:
        """The `images` [B, 3, S, S] uint8 of `samples` [B], augmented anew for every `draw`; normalised float32."""
        if config.resized_crop is not None:
            draws = uniform(self.seed, draw, samples, CROP_DRAWS, purpose=CROPS)
            images = cropped(images, RandomCrop(config.resized_crop, draws))
        changed = augment(images, config, uniform(self.seed, draw, samples, DRAWS))
        return normalise(changed, self.data.mean, self.data.std)

    def batches(self, samples: np.ndarray) -> Iterator[Tensor]:
        """Batches [B, 3, S, S] of the `samples` in order, only normalised; float32."""
        for start in range(0, len(samples), IMAGES_AT_ONCE):
            images = self.images.uint8(samples[start : start + IMAGES_AT_ONCE])
            yield normalise(images, self.data.mean, self.data.std)
