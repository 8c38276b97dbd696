"""The differences between two sets of settings, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

DIGESTS = ("steps", "training images", "validation images")
"""The settings of a training that are hashes, whose values say nothing to a reader."""


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The fields in which two sets of settings differ, in words: "method.epochs: 4, now 6"."""
    ours, theirs = flat(now), flat(before)
    changed = [name for name in sorted(ours.keys() | theirs.keys()) if _shown(ours, name) != _shown(theirs, name)]
    fields = [f"{name}: {_shown(theirs, name)}, now {_shown(ours, name)}" for name in changed if name not in DIGESTS]
    return fields + [f"other {name}" for name in changed if name in DIGESTS and not (name == "steps" and fields)]


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested settings by the path to each: {"method.epochs": 4}."""
    if isinstance(settings, Mapping) and settings:
        return {path: leaf for key, item in settings.items() for path, leaf in flat(item, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): settings}


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name]) if name in settings else "its default"
