"""Learning-rate schedules, one factor an epoch, computed by torch's own schedulers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR

from moe_dist.settings.training import ScheduleConfig


class RateFactor:
    """The factor that multiplies every initial learning rate in the current epoch.

    The scheduler drives an optimiser of its own with rate 1, so that the same schedule serves any engine, whatever it
    wraps around the real optimiser.
    """

    def __init__(self, config: ScheduleConfig, epochs: int) -> None:
        self._unit = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        self._scheduler = _scheduler(self._unit, config, epochs)
        self._unit.step()  # torch warns when a scheduler steps before its optimiser

    @property
    def factor(self) -> float:
        """The factor of the epoch to come."""
        return self._unit.param_groups[0]["lr"]

    def epoch_done(self, validation_loss: float | None) -> None:
        """Move to the next epoch; only the plateau schedule looks at the loss, and it needs one."""
        if isinstance(self._scheduler, ReduceLROnPlateau):
            assert validation_loss is not None  # run.py refuses the schedule where there is no validation
            self._scheduler.step(validation_loss)
        else:
            self._scheduler.step()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; plain JSON values."""
        return {"factor": self.factor, "scheduler": self._scheduler.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._scheduler.load_state_dict(state["scheduler"])
        self._unit.param_groups[0]["lr"] = state["factor"]


def _scheduler(unit: torch.optim.Optimizer, config: ScheduleConfig, epochs: int) -> Any:
    if config.kind == "plateau":
        return ReduceLROnPlateau(unit, factor=config.factor, patience=config.patience_epochs)
    if config.kind == "step":
        return StepLR(unit, step_size=config.step_epochs, gamma=config.factor)
    if config.kind == "cosine":
        return LambdaLR(unit, lambda epoch: _cosine(epoch, epochs, config.warmup_epochs))
    return LambdaLR(unit, lambda epoch: 1.0)


def _cosine(epoch: int, epochs: int, warmup: int) -> float:
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(1, epochs - warmup)))
