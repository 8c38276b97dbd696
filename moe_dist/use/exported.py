"""An exported model: written, and loaded again. What lies in its folder is in record/exported.py."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from moe_dist.data.batch import DatasetInfo
from moe_dist.errors import UserError
from moe_dist.files import file_sha256, whole_file, write_json
from moe_dist.methods.base import Method
from moe_dist.methods.config import MethodConfig
from moe_dist.methods.registry import method_class
from moe_dist.record.exported import CONFIG, FORMAT, KIND, WEIGHTS, exported_content
from moe_dist.record.fingerprints import stages_of_last_training, untrained
from moe_dist.settings.explain import explain
from moe_dist.use.model import TrainedModel
from moe_dist.use.preprocess import Preprocessing


def save_exported(model: TrainedModel, folder: Path) -> None:
    """Write the model's weights and config.json, which is written last."""
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.network.state_dict().items()}
    with whole_file(folder / WEIGHTS) as partial:
        save_file(tensors, partial)
    write_json(
        folder / CONFIG,
        {
            "kind": KIND,
            "format": FORMAT,
            "method": model.method.config.model_dump(mode="json"),
            "predicts": model.predicts,
            "classes": list(model.classes),
            "preprocessing": asdict(model.preprocessing),
            "dataset": asdict(model.method.info),
            "about": model.about,
            "weights": {"file": WEIGHTS, "sha256": file_sha256(folder / WEIGHTS)},
        },
    )


def load_exported(folder: Path) -> TrainedModel:
    """The model of a folder that `save_exported` wrote. Raises UserError where it is not whole, or of another kind."""
    content = exported_content(folder)
    info = DatasetInfo(**{name: _frozen(value) for name, value in content["dataset"].items()})
    preprocessing = Preprocessing(**{name: _frozen(value) for name, value in content["preprocessing"].items()})
    try:
        config = method_class(content["method"]["name"]).Config.model_validate(content["method"])
    except ValidationError as error:
        raise UserError(f"{folder / CONFIG}: was written by another version of moe-dist ({explain(error)})") from None
    method, network = empty_network(config, info, content["about"]["seed"])
    path = folder / content["weights"]["file"]
    try:
        if file_sha256(path) != content["weights"]["sha256"]:
            raise UserError(f"{path}: does not hold the bytes that were written; export the model again")
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be loaded ({' '.join(str(error).split())}); export the model again") from None
    return TrainedModel(method, network, preprocessing, content["about"])


def empty_network(config: MethodConfig, info: DatasetInfo, seed: int) -> tuple[Method, nn.Module]:
    """A model's method, and its network before its weights are loaded. No pretrained weights are fetched."""
    method = method_class(config.name)(config.untrained(), info)
    return method, untrained(method, stages_of_last_training(method)[0], seed)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
