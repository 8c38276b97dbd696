"""What is wrong with a configuration, in the words of its fields."""

from __future__ import annotations

from typing import Any

from pydantic import (
    BaseModel,
    ValidationError,
)

RENAMED = {"data.hold": "data.decode: once for memory, each_time for disk"}
"""Fields of earlier versions: what to write instead."""


def explain(error: ValidationError) -> str:
    """A pydantic error in the field's words: every problem names its field, the value given and what is allowed."""
    return "; ".join(_explain_one(problem) for problem in error.errors())


def _explain_one(problem: Any) -> str:
    field = ".".join(str(part) for part in problem["loc"] if part != "function-before[_method_config(), MethodConfig]")
    if problem["type"] == "extra_forbidden":
        return f"{field}: unknown field" + (f"; write {RENAMED[field]}" if field in RENAMED else "")
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = problem.get("input")
    shown = "" if isinstance(given, dict | list | BaseModel) else f", got {given!r}"
    return f"{field}: {message}{shown}" if field else message
