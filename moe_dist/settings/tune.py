"""The section `tune` of a job: what is searched, over which values, and with what budget."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from moe_dist.settings.schema import Count, Positive, Strict

Value = bool | int | float | str
METHOD = "method"
"""The study of a method as a whole; an expert's study is called by the expert's number."""


class Range(Strict):
    """All numbers from low to high, both included; log: as many between 1 and 10 as between 10 and 100."""

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"low = {self.low} and high = {self.high} must be numbers that are not infinite")
        if self.low >= self.high:
            raise ValueError(f"low = {self.low} is not below high = {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0, not {self.low}")
        return self


def _range_or_choices(value: Any) -> Any:
    """Either kind by its form, so that a refusal speaks of that kind alone."""
    if isinstance(value, dict):
        return Range.model_validate(value)
    if isinstance(value, list | tuple) and len(value) > 0:
        for choice in value:
            if not isinstance(choice, Value):
                raise ValueError(f"a choice is a number, a word, true or false, not {choice!r}")
        return tuple(value)
    if isinstance(value, Range):
        return value
    raise ValueError("give {low: ..., high: ...}, or a list of values to choose from")


Values = Annotated[Range | tuple[Value, ...], BeforeValidator(_range_or_choices)]
Space = dict[str, Values]
"""Parameter -> the values it may take. A method's parameter is named by its path, as gate.optimiser.learning_rate."""


class TuneConfig(Strict):
    """A search: one study per expert, one of the method as a whole, or both."""

    of: tuple[Literal["experts", "method"], ...] = ("experts",)
    """experts: every expert alone, scored by F1 on the validation split; method: the method as the job describes it,
    scored by top-1 on the validation split. Both: the experts first, and then the method with those that were found."""
    experts: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Numbers of the experts that are searched; default: all."""
    space: Space | None = None
    """Of the experts; default: the method's own."""
    method_space: Space | None = None
    """Of the method as a whole; default: the method's own."""
    trials: Count | None = 16
    """Of each study; with sharing = gain, on the average of the studies. null: until the time is up."""
    seconds: Positive | None = None
    """No trial is begun later than so many seconds after the search began; earlier runs of it count. With both kinds
    `of`, each of the two searches has so many."""
    sharing: Literal["fair", "gain"] = "fair"
    """Whose turn it is: the study with fewest trials, or the one whose next trials promise the largest gain."""
    batch: Count = 8
    """Trials of a study that are asked for, and trained, together."""
    together: Count = 1
    """Studies whose batches make one trial of Ray Tune: many keep a GPU busy."""
    sampler: Literal["tpe", "random"] = "tpe"
    random_trials: Annotated[int, Field(ge=0)] = 4
    """tpe: so many trials of a study, starting points included, go before those that learn from them."""
    starts: Literal["trend", "none"] = "trend"
    """trend: a study begins with the configuration in the job and the one its number of samples suggests (Table 1)."""
    epochs: Count = 12
    """Of a trial of an expert; a trial of a method trains as the method's configuration says."""
    rungs: tuple[Count, ...] = ()
    """Epochs after which only the best 1 / `rung_factor` of a study's trials go on."""
    rung_factor: Annotated[int, Field(ge=2)] = 3
    validate_every: Count = 1
    """Epochs between two scores of an expert; the rungs and the last epoch are always scored."""
    backend: Literal["bank", "process"] = "bank"
    """bank: a batch's networks trained together; process: one after another."""
    compare_seeds: Annotated[int, Field(ge=0)] = 1
    """Every expert's best and the job's own configuration are trained again from so many other seeds, and compared."""

    @model_validator(mode="after")
    def _can_be_searched(self) -> TuneConfig:
        if not self.of:
            raise ValueError("of: name what is searched: experts, method or both")
        if self.experts == ():
            raise ValueError("experts is empty; name the experts to search, or leave experts out for all")
        if self.trials is None and self.seconds is None:
            raise ValueError("no budget; give trials, seconds or both")
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"rungs = {list(self.rungs)} are not in ascending order")
        for name in ("space", "method_space"):
            if getattr(self, name) == {}:
                raise ValueError(f"{name} is empty; name a parameter and its values, or leave {name} out")
        return self
