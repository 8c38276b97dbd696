"""pydantic's refusals of a configuration, told in the words of its fields."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

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
            message = "unknown field" + _renamed(field)
        elif not isinstance(given, dict | list | BaseModel):
            message += f", got {given!r}"
        message = message[0].lower() + message[1:]
        problems.append(f"{field}: {message}" if field else message)
    return "; ".join(problems)


def _renamed(field: str) -> str:
    """What to write instead of an unknown field, if an earlier version had it."""
    found = (words for name, words in RENAMED.items() if f".{field}".endswith(f".{name}"))
    return "".join(f"; write {words}" for words in found)
