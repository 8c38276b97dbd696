"""Search spaces: a job's values, checked against the configuration they change, as Optuna's distributions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import TypeAdapter, ValidationError

from moe_dist.errors import UserError
from moe_dist.settings.explain import explain
from moe_dist.settings.schema import Strict
from moe_dist.settings.tune import Range, Space, Value

Distributions = dict[str, BaseDistribution]
Configuration = TypeVar("Configuration", bound=Strict)


def read_space(values: Mapping[str, Any]) -> Space:
    """The space that a method gives as plain values, written as in a job."""
    return TypeAdapter(Space).validate_python(dict(values))


def configured(base: Configuration, values: Mapping[str, Any]) -> Configuration:
    """`base` with other `values` of parameters, which are named by their paths. Raises pydantic's ValidationError."""
    content = base.model_dump(mode="json")
    for path, value in values.items():
        *parents, last = path.split(".")
        node = content
        for parent in parents:
            node = node[parent]
        node[last] = value
    return type(base).model_validate(content)


def parameters(base: Strict) -> dict[str, Any]:
    """Every parameter of a configuration: path -> value."""
    return dict(_leaves(base.model_dump(mode="json"), ""))


def _leaves(content: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def distributions(space: Space, base: Strict, where: str) -> Distributions:
    """The distributions of a space over parameters of `base`; `where` names the space in messages.

    Raises UserError for a parameter that `base` does not have, and for values that it refuses.
    """
    known = parameters(base)
    for path in space:
        if path not in known:
            raise UserError(f"{where}.{path}: there is no such parameter; choose among {', '.join(sorted(known))}")
    return {path: _distribution(path, values, base, where) for path, values in space.items()}


def _distribution(path: str, values: Range | tuple[Value, ...], base: Strict, where: str) -> BaseDistribution:
    if not isinstance(values, Range):
        for choice in values:
            _validated(path, choice, base, where)
        return CategoricalDistribution(values)
    low, high = (_validated(path, bound, base, where) for bound in (values.low, values.high))
    if isinstance(low, bool) or not isinstance(low, int | float):
        raise UserError(f"{where}.{path}: is not a number, so it has no range; give a list of values to choose from")
    if isinstance(low, int):
        return IntDistribution(low, high, log=values.log)
    return FloatDistribution(low, high, log=values.log)


def _validated(path: str, value: Value, base: Strict, where: str) -> Any:
    """The value as the configuration reads it, for example 1 as 1.0. Raises UserError where it refuses the value."""
    try:
        return parameters(configured(base, {path: value}))[path]
    except ValidationError as error:
        raise UserError(f"{where}.{path}: {explain(error)}") from None


def nearest(distribution: BaseDistribution, value: Any) -> Value:
    """The value of a distribution that is nearest to `value`.

    For a word that is not one of the choices, the first choice; for None in a range, the lowest number.
    """
    if isinstance(distribution, CategoricalDistribution):
        choices: tuple[Any, ...] = distribution.choices
        numbers = [choice for choice in choices if isinstance(choice, int | float)]
        if value in choices or not numbers or not isinstance(value, int | float):
            return value if value in choices else choices[0]
        return min(numbers, key=lambda choice: abs(choice - value))
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    clamped = distribution.low if value is None else min(max(value, distribution.low), distribution.high)
    return math.floor(clamped + 0.5) if isinstance(distribution, IntDistribution) else float(clamped)
