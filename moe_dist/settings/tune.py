"""The section `tune` of a job: what is searched, over which values, and with which budget."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from moe_dist.settings.schema import Count, Positive, Strict

Value = bool | int | float | str
METHOD = "method"
"""The name of the study of a method as a whole; an expert's study is named by the expert's number."""


class Range(Strict):
    """All numbers from low to high, both included; log: drawn uniformly by their logarithm."""

    model_config = ConfigDict(allow_inf_nan=True)  # refused below, with both ends named

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
    """Choose the kind of values by their form, so that an error is about that kind alone."""
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
"""Parameter -> its possible values. A method's parameter is named by its path, as gate.optimiser.learning_rate."""


class TuneConfig(Strict):
    """A search: one study per expert, one of the method as a whole, or both."""

    of: tuple[Literal["experts", "method"], ...] = ("experts",)
    """experts: every expert alone, scored by F1 on the validation split; method: the job's method, scored by top-1 on
    the validation split. Both: the experts first, and then the method with the experts that were found."""
    experts: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """The numbers of the experts that are searched; default: all."""
    space: Space | None = None
    """The experts' search space; default: the method's own."""
    method_space: Space | None = None
    """The search space of the method as a whole; default: the method's own."""
    trials: Count | None = 16
    """Trials of each study; with sharing = gain, on the average of the studies. null: until `seconds` are over."""
    seconds: Positive | None = None
    """No trial begins later than so many seconds after the search began, its earlier runs included. Where `of` names
    both kinds, each of the two searches has so many."""
    sharing: Literal["fair", "gain"] = "fair"
    """Which study runs next: the one with the fewest trials, or the one whose next trials promise the largest gain."""
    batch: Count = 8
    """Trials of an expert's study that are suggested, and trained, together."""
    together: Count = 1
    """Studies whose batches are one trial of Ray Tune; more of them use a GPU better."""
    sampler: Literal["tpe", "random"] = "tpe"
    random_trials: Annotated[int, Field(ge=0)] = 4
    """tpe: the first trials of a study, its starts included, that do not learn from earlier ones."""
    starts: Literal["trend", "none"] = "trend"
    """trend: a study begins with the job's configuration and, for an expert, the one that Table 1 suggests for its
    number of samples; none: with drawn ones."""
    epochs: Count = 12
    """Epochs of an expert's trial; those of a method's trial are the method's own."""
    rungs: tuple[Count, ...] = ()
    """Epochs after which only the best 1 / `rung_factor` of a study's trials so far go on."""
    rung_factor: Annotated[int, Field(ge=2)] = 3
    validate_every: Count = 1
    """Epochs between two scores of an expert's trial; rungs and the last epoch are always scored."""
    backend: Literal["bank", "process"] = "bank"
    """bank: the networks of a batch are trained together; process: one after another."""
    compare_seeds: Annotated[int, Field(ge=0)] = 1
    """Other seeds from which every expert's best configuration and the job's are trained again, to compare them."""

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
