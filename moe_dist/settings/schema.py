"""The base class of every configuration, kinds of numbers and paths, and the declaration of what depends on a field."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from moe_dist.paths import from_home, is_url, local_path

Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
AbsolutePath = Annotated[Path, BeforeValidator(local_path), AfterValidator(lambda path: from_home(path).absolute())]
"""A path of this machine, made absolute when the job is loaded: workers have another current directory."""


def _place(given: str | Path) -> str:
    """A URL as it is, and a path made absolute."""
    return str(given) if is_url(given) else str(from_home(local_path(given)).absolute())


AbsolutePlace = Annotated[str, BeforeValidator(_place)]
"""A folder or file of this machine, by its absolute path, or one at a URL."""


class Strict(BaseModel):
    """Base of every configuration: unknown fields are refused, and values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _a_truth_value_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number is meant: pydantic would take them for 1 and 0."""
        kinds = kinds_in(cls.model_fields[str(info.field_name)].annotation)
        items = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(item, bool) for item in items) and (int in kinds or float in kinds) and bool not in kinds:
            raise ValueError("must be a number, not true or false")
        return value


def kinds_in(annotation: Any) -> list[Any]:
    """An annotation and all parts of it, however deep: `tuple[Annotated[int, ...], ...] | None` has int among them."""
    return [annotation, *(kind for part in get_args(annotation) for kind in kinds_in(part))]


class Part(Enum):
    """What depends on a field of a job, declared where the field is: `keep: Annotated[Count, Part.EVALUATION]`."""

    RESULT = "result"
    """The numbers of a step or a training. This is the default, so that a field nobody thought about is counted."""
    EVALUATION = "evaluation"
    """How a trained model is looked at or chosen."""
    NONE = "none"
    """No number, or only through what is counted by itself (the digests of the samples, the precision)."""


_ABSENT: Any = object()
"""Stands for a value that has no setting of the part that is asked for."""


def settings_of(config: Strict, part: Part = Part.RESULT) -> dict[str, Any]:
    """The settings of `config` that `part` depends on, as JSON values by field.

    Settings at their default are left out, so that a field that is new in this version does not make old results look
    different. (A default that changes must: see SCHEME in record/fingerprints.py.)
    """
    settings: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = _field_settings(field, getattr(config, name), part)
        default = _ABSENT
        if not field.is_required():
            default = _field_settings(field, field.get_default(call_default_factory=True), part)
        if value is not _ABSENT and value != default:
            settings[name] = value
    return settings


def declared_part(field: FieldInfo) -> Part:
    """The part that a field was declared with."""
    return next((entry for entry in field.metadata if isinstance(entry, Part)), Part.RESULT)


def _field_settings(field: FieldInfo, value: Any, part: Part) -> Any:
    """The settings of a field's `value` that `part` depends on, or _ABSENT.

    A field declared with another part than RESULT belongs to it as a whole. Any other may hold configurations some of
    whose own fields were declared with `part`.
    """
    declared = declared_part(field)
    if declared is Part.RESULT:
        return _nested_settings(value, part)
    return to_jsonable_python(value) if declared is part else _ABSENT


def _nested_settings(value: Any, part: Part) -> Any:
    """The settings inside a value, or _ABSENT: for RESULT all not declared otherwise, for another part what was."""
    if isinstance(value, Strict):
        settings: Any = settings_of(value, part)
    elif isinstance(value, dict):
        settings = {str(key): _nested_settings(item, part) for key, item in value.items()}
        settings = {key: item for key, item in settings.items() if item is not _ABSENT}
    elif isinstance(value, list | tuple):
        items = [_nested_settings(item, part) for item in value]
        some = any(item is not _ABSENT for item in items)
        settings = [None if item is _ABSENT else item for item in items] if some else []
    else:
        settings = to_jsonable_python(value) if part is Part.RESULT else {}
    return settings if settings or part is Part.RESULT else _ABSENT
