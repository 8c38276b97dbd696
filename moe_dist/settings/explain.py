"""pydantic's refusals of a configuration, told in the words of its fields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from moe_dist.settings.schema import Strict, kinds_in

RENAMED = {
    "data.hold": "data.decode: once for memory, each_time for disk",
    "trusted_fraction": "trusted: {fraction: 0.1, by: track} for whole tracks, as it was drawn, or by: image",
}
"""Fields of earlier versions, by the end of their path: what to write instead."""


def explain(error: ValidationError) -> str:
    """The error as one sentence: every problem names its field, what is allowed and the value that was given."""
    problems = []
    for problem in error.errors():
        # A field that may be None has the name of its validator's function in its path.
        field = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("function-"))
        message = problem["msg"].removeprefix("Value error, ")
        given = problem.get("input")
        if problem["type"] == "extra_forbidden":
            message = "unknown field" + (_renamed(field) or _meant(error.title, problem["loc"]))
        elif not isinstance(given, dict | list | BaseModel):
            message += f", got {given!r}"
        message = message[0].lower() + message[1:]
        problems.append(f"{field}: {message}" if field else message)
    return "; ".join(problems)


def _renamed(field: str) -> str:
    """What to write instead of an unknown field, if an earlier version had it."""
    found = (words for name, words in RENAMED.items() if f".{field}".endswith(f".{name}"))
    return "".join(f"; write {words}" for words in found)


def _meant(root: str, path: Sequence[int | str]) -> str:
    """The field that was meant, if one of the section's is called much like the unknown one at the end of `path`.

    root: the name of the configuration that the path begins in.
    """
    sections = {section for section in _all_of(Strict) if section.__name__ == root}
    for part in path[:-1]:
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        kinds = {kind for field in fields for kind in kinds_in(field.annotation)}
        inner = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Strict)}
        sections = {each for kind in inner for each in _all_of(kind)} or sections  # a method's is one of its base's
    names = sorted({name for section in sections for name in section.model_fields})
    return "".join(f"; did you mean {name}?" for name in get_close_matches(str(path[-1]), names, 1))


def _all_of(kind: Any) -> Iterator[Any]:
    """A class and all classes below it."""
    yield kind
    for below in kind.__subclasses__():
        yield from _all_of(below)
