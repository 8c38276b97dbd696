"""Overrides of a job's fields: `--set a.b=c`, or `--set @FILE` with one on each line.

A value is YAML on one line, and is taken whole: no comment ends it. In a file, `#` begins a comment at the start of a
line, after two blanks or more, and after a value in quotes or brackets, which says itself where it ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from moe_dist.errors import UserError
from moe_dist.files import read_text
from moe_dist.paths import from_home
from moe_dist.shipped import OVERRIDES, found
from moe_dist.yaml_core import CoreLoader, load_yaml

_COMMENT = re.compile(r"\s{2,}#.*")
_ENCLOSED = ("'", '"', "[", "{")
_HASH = re.compile(r"(?:^|\s)#")


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply overrides, as a user gives them to `--set`, to a job's `content`. Raises UserError where one is wrong."""
    for override in overrides:
        if not override.startswith("@"):
            _set(content, override, f"--set {override}")
            continue
        for line, where in _lines(override):
            _set(content, line, where, in_file=True)


def _lines(override: str) -> Iterator[tuple[str, str]]:
    """The overrides in the file of `@FILE`, without what is nothing but a comment, and where each is, for errors."""
    path = found(from_home(Path(override[1:])), OVERRIDES)
    text = read_text(path, f"--set {override}", "file of overrides")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip(), f"--set {override}: line {number}: {line.strip()}"


def _set(content: dict[str, Any], override: str, where: str, in_file: bool = False) -> None:
    """Apply an override `a.b=c` to `content`. The value is YAML, and the path must lead through mappings."""
    field, equals, text = override.partition("=")
    if not equals or not field:
        raise UserError(f"{where}: write it as field=value, for example workers=2")
    _require_same_kind(content, field.split(".")[:-1], where)
    set_field(content, field, _value(text, where, in_file), where)


def _value(text: str, where: str, in_file: bool) -> Any:
    """The value that `text` stands for; see the head of this file for what `#` means in it."""
    if text.lstrip().startswith(_ENCLOSED):
        comment = _after_value(text, where)
        if comment and not in_file:
            raise UserError(f"{where}: {comment!r} follows the value and is no part of it; take it away")
    else:
        text = _COMMENT.sub("", text) if in_file else text
        if _HASH.search(text):  # YAML would drop what follows
            return text.strip()
    try:
        return load_yaml(text)
    except ValueError:
        raise UserError(f"{where}: {text.strip()!r} is not a YAML value") from None


def _after_value(text: str, where: str) -> str:
    """What stands after the value at the start of `text`, which can only be a comment. Raises UserError if none is."""
    try:
        tokens = list(yaml.scan(text, Loader=CoreLoader))
    except yaml.YAMLError:
        raise UserError(f"{where}: {text.strip()!r} is not a YAML value") from None
    ends = (token.end_mark.index for token in tokens if not isinstance(token, yaml.BlockEndToken | yaml.StreamEndToken))
    return text[max(ends) :].strip()


def set_field(content: dict[str, Any], field: str, value: Any, where: str) -> None:
    """Set `field` (a.b.c) of a job's `content`. UserError, at `where`, unless its path leads through mappings."""
    *parents, last = field.split(".")
    node = content
    for depth, parent in enumerate(parents):
        child = {} if node.get(parent) is None else node[parent]
        if not isinstance(child, dict):
            raise UserError(f"{where}: {'.'.join(parents[: depth + 1])} holds a value, not fields")
        # Copied, because by an anchor of the file other fields may hold the same mapping.
        node[parent] = dict(child)
        node = node[parent]
    node[last] = value


def _require_same_kind(content: dict[str, Any], parents: list[str], where: str) -> None:
    """Raise UserError if an override is for `method` and the job has `methods`, or the other way round."""
    if parents[:1] == ["method"] and content.get("methods"):
        names = ", ".join(content["methods"])
        raise UserError(f"{where}: the job has several methods ({names}); write methods.NAME.FIELD=VALUE")
    if parents[:1] == ["methods"] and content.get("method"):
        raise UserError(f"{where}: the job has one method; write method.FIELD=VALUE, without a name")
