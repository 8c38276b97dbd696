"""How a network is trained, as a job may set it: weights to start from, sampling, optimiser, schedule, checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from moe_dist.paths import from_home, local_path
from moe_dist.settings.schema import Count, Fraction, NonNegative, Part, Positive, Strict

Weights = Annotated[
    str, AfterValidator(lambda name: str(from_home(local_path(name)).absolute()) if "." in name else name)
]
"""torchvision's name of weights, or the path of a file (which has a suffix)."""

Sampling = Literal["instance", "balanced", "square_root", "progressive"]
"""How often an epoch shows a class of n images. instance: n times (every image once); balanced: as often as any other
class; square_root: in proportion to sqrt(n); progressive: from instance in the first epoch to balanced in the last."""


class OptimiserConfig(Strict):
    """A torch optimiser: kind, rate and decay."""

    kind: Literal["sgd", "rmsprop", "adam", "adamw"] = "adam"
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """sgd: its momentum; the other kinds have none."""


class ScheduleConfig(Strict):
    """How the learning rates change from epoch to epoch."""

    kind: Literal["constant", "plateau", "step", "cosine"] = "constant"
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """plateau, step: what the rate is multiplied by when it drops."""
    patience_epochs: Annotated[int, Field(ge=0)] = 10
    """plateau: epochs without a lower validation loss before the rate drops."""
    step_epochs: Count = 30
    """step: epochs between two drops."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """cosine: epochs of linear warm-up."""
    warmup_start: Fraction | None = None
    """cosine: the share of the rate in the first of them; null: 1 / (warmup_epochs + 1)."""


class CheckpointConfig(Strict):
    """When the training state is saved and how much of it is kept."""

    every_epochs: Annotated[Count, Part.EVALUATION] = 1
    every_steps: Annotated[int, Field(ge=0), Part.NONE] = 0
    """Steps between two checkpoints inside an epoch; 0 saves at the ends of epochs only."""
    test_every_epochs: Annotated[int, Field(ge=0), Part.NONE] = 0
    """Epochs between two looks at the test split while training; 0: none before the end. Nothing is chosen by them:
    they are for curves beside published ones. The report tells the best of them, and that it was chosen on test."""
    keep: Annotated[Count, Part.EVALUATION] = 2
    """Number of newest checkpoints that stay, beside the one that did best on the validation split. Under Ray Train:
    number of best ones that stay, beside the newest."""
    max_failures: Annotated[int, Field(ge=0), Part.NONE] = 3
    """How often a training is restarted from its last checkpoint after a worker died."""
