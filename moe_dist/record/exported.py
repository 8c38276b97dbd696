"""An exported model: a folder with all that its use needs, and nothing of the run that trained it.

config.json          the method's settings, the classes, the preprocessing, and where the model comes from
model.safetensors    the network's parameters and buffers
README.md            the model card (card.py)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moe_dist.errors import UserError
from moe_dist.files import read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
KIND = "moe_dist model"
FORMAT = 1
"""Version of config.json."""


def is_exported(folder: Path) -> bool:
    """Whether `folder` holds an exported model."""
    return (folder / CONFIG).is_file()


def exported_content(folder: Path) -> dict[str, Any]:
    """config.json. Raises UserError where it is not of such a folder, or of a later version."""
    content = read_json(folder / CONFIG)
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise UserError(f"{folder / CONFIG}: is not of a model that `moe-dist export --to folder` wrote")
    if content["format"] > FORMAT:
        raise UserError(f"{folder}: was written by a later version of moe-dist; load it with that one")
    return content
