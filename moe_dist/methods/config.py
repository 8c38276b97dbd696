"""What every method's configuration starts with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from moe_dist.settings.data import DataConfig
from moe_dist.settings.schema import Strict


class MethodConfig(Strict):
    """What every method's configuration starts with."""

    name: str

    def check(self, classes: int) -> None:
        """Raise UserError where this configuration cannot work with a dataset of `classes` classes."""

    def untrained(self) -> Self:
        """These settings without pretrained weights, for a network whose own weights are loaded afterwards.

        Default: a field called `weights` becomes null, so that nothing has to be fetched.
        """
        return self.model_copy(update={"weights": None}) if "weights" in type(self).model_fields else self

    def notices(self) -> Sequence[str]:
        """What the user should know of settings that are allowed and do nothing: a sentence each."""
        return ()

    def notices_of(self, data: DataConfig) -> Sequence[str]:
        """What the user should know of these settings together with those of the data: a sentence each."""
        return ()

    def slow_here(self, field: str) -> Sequence[str]:
        """What of these settings is slow on this machine's processor, a sentence each; asked where tasks use no GPU.

        field: where these settings are in the job.
        """
        return ()


def unlike_pretraining(backbone: str, weights: str | Path | None, data: DataConfig) -> Sequence[str]:
    """A sentence where images are not normalised as those that a backbone's pretrained `weights` were trained on."""
    from moe_dist.models.timm_networks import expected_input  # imports torch, which reading a job does not need

    expected = expected_input(backbone) if weights is not None else None
    if expected is None or np.allclose((data.mean, data.std), expected[:2], atol=5e-3):
        return ()
    mean, std, side = expected
    return (
        f"{backbone}'s weights were trained on images of {side} pixels with mean {list(mean)} and std "
        f"{list(std)}, and data.mean and data.std are others",
    )
