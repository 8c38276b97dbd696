"""What every configuration is made of: its base class, kinds of numbers and paths, and what a field is a part of."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from moe_dist.paths import local_path

Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
AbsolutePath = Annotated[Path, BeforeValidator(local_path), AfterValidator(lambda path: path.expanduser().absolute())]
"""Made absolute when the job is loaded: workers have another current directory."""


class Part(Enum):
    """What a field of a job is a part of; declared where the field is, as `keep: Annotated[Count, Part.EVALUATION]`."""

    RESULT = "result"
    """Numbers of a step or a training depend on it. The default: a field nobody thought about is counted."""
    EVALUATION = "evaluation"
    """How a trained model is looked at or chosen."""
    NONE = "none"
    """No number depends on it, or only through what is counted by itself (the samples' digests, the precision)."""


class Strict(BaseModel):
    """Base of every configuration: unknown keys are refused, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def settings_of(config: Strict, part: Part = Part.RESULT) -> dict[str, Any]:
    """The settings of `config` that are a part of `part`, as JSON values.

    Those at their default are left out, so that a field that is new in this version does not tell old results apart
    from new ones. (A default that changes does: see SCHEME in train/fingerprints.py.)
    """
    settings: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        found = _of_field(field, getattr(config, name), part)
        default = _NOTHING
        if not field.is_required():
            default = _of_field(field, field.get_default(call_default_factory=True), part)
        if found is not _NOTHING and found != default:
            settings[name] = found
    return settings


def declared_part(field: FieldInfo) -> Part:
    """What a field was declared to be a part of."""
    return next((entry for entry in field.metadata if isinstance(entry, Part)), Part.RESULT)


_NOTHING: Any = object()


def _of_field(field: FieldInfo, value: Any, part: Part) -> Any:
    """What a field's `value` has of `part`; a field that was not declared may hold configurations with some of it."""
    declared = declared_part(field)
    if declared is Part.RESULT:
        return _within(value, part)
    return to_jsonable_python(value) if declared is part else _NOTHING


def _within(value: Any, part: Part) -> Any:
    """What of a value belongs to `part`: of a result all that is not declared otherwise, else what is declared so."""
    if isinstance(value, Strict):
        found: Any = settings_of(value, part)
    elif isinstance(value, dict):
        found = {str(key): _within(item, part) for key, item in value.items()}
        found = {key: item for key, item in found.items() if item is not _NOTHING}
    elif isinstance(value, list | tuple):
        found = [_within(item, part) for item in value]
        some = any(item is not _NOTHING for item in found)
        found = [None if item is _NOTHING else item for item in found] if some else []
    else:
        found = to_jsonable_python(value) if part is Part.RESULT else {}
    return found if found or part is Part.RESULT else _NOTHING
