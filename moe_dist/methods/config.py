"""What every method's configuration starts with."""

from __future__ import annotations

from collections.abc import Sequence

from moe_dist.settings.data import DataConfig
from moe_dist.settings.schema import Strict


class MethodConfig(Strict):
    """What every method's configuration starts with."""

    name: str

    def check(self, classes: int) -> None:
        """Raise UserError where this configuration cannot work with a dataset of `classes` classes."""

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
