"""A trained model as a graph for other programs: torch.export's .pt2, or ONNX by torch's own exporter.

A graph takes preprocessed samples [B, 3, S, S] or [B, D] float32 of any B, and gives log_probs [B, C] and the weights
of every gate. It computes all experts: which of them top-k leaves out depends on the image, and a graph has one way.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_dist.errors import UserError
from moe_dist.files import whole_file
from moe_dist.use.model import TrainedModel

PT2, ONNX = "model.pt2", "model.onnx"
TOLERANCE = 1e-4
"""The largest difference of a log-probability or weight between a graph and the model."""
LARGEST_BATCH = 2**16
_EXAMPLE = 4
"""Samples of the traced batch: neither 0 nor 1, which torch.export would take for constants."""
_EXTRA = ("onnx", "onnxscript", "onnxruntime")


class Graph(nn.Module):
    """What is exported: samples -> (log_probs, the weights of each gate in the order of `outputs`)."""

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        self.model = model
        self.outputs = ["log_probs", *(f"gate_{name}" if name else "gate" for name in model.gate_sizes)]

    def forward(self, samples: Tensor) -> tuple[Tensor, ...]:
        prediction = self.model.method.predict(self.model.network, samples)
        return self.model.tempered(prediction.log_probs.float()), *(gate.float() for gate in prediction.gates.values())


def export_torch(model: TrainedModel, folder: Path, checked_on: Tensor) -> float:
    """Write model.pt2, and return its largest difference from the model on `checked_on` [n, ...], preprocessed.

    Raises UserError where the method's computation cannot be traced, or the difference is too large.
    """
    graph = Graph(model)
    content = io.BytesIO()
    with _quiet():
        torch.export.save(_traced(graph), content)
        content.seek(0)
        loaded = torch.export.load(content).module()
    difference = _difference(graph, checked_on, lambda samples: [output.numpy() for output in loaded(samples)])
    with whole_file(folder / PT2) as partial:
        partial.write_bytes(content.getvalue())
    return difference


def export_onnx(model: TrainedModel, folder: Path, checked_on: Tensor) -> float:
    """Write model.onnx, and return its largest difference from the model on `checked_on`, computed by onnxruntime.

    Raises UserError like `export_torch`, and where the extra `export` is not installed.
    """
    if missing := [name for name in _EXTRA if find_spec(name) is None]:
        raise UserError(f"ONNX needs {', '.join(missing)}: pip install 'moe-dist[export]'")
    import onnxruntime

    graph = Graph(model)
    with _quiet():
        traced = _traced(graph)
        try:
            program = torch.onnx.export(
                traced,
                dynamo=True,
                custom_translation_table={torch.ops.aten._cdist_forward.default: _distances},
                input_names=["samples"],
                output_names=graph.outputs,
                verbose=False,
            )
        except Exception as error:  # the exporter raises errors of its own, whose module is private
            raise UserError(
                f"{_name(model)} cannot be exported to ONNX ({_reason(error)}); use --to torch or folder"
            ) from error
    assert program is not None
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    difference = _difference(graph, checked_on, lambda samples: session.run(None, {"samples": samples.numpy()}))
    with whole_file(folder / ONNX) as partial:
        partial.write_bytes(content)
    return difference


def _traced(graph: Graph) -> torch.export.ExportedProgram:
    """The graph of a batch of any size. Raises UserError where its computation depends on what is in the samples."""
    example = graph.model.preprocessing.normalised(graph.model.preprocessing.empty(_EXAMPLE))
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    try:
        with torch.no_grad():
            return torch.export.export(graph, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch._dynamo's errors are private
        raise UserError(
            f"{_name(graph.model)} cannot be exported as a graph, as what it computes depends on the samples "
            f"({_reason(error)}); use --to folder, which moe_dist.load reads"
        ) from error


def _difference(graph: Graph, samples: Tensor, computed: Callable[[Tensor], Sequence[np.ndarray]]) -> float:
    """The largest difference of `computed` from the graph's module, alone, for a few and for all samples at once.

    Raises UserError where it is too large.
    """
    largest = 0.0
    for part in (samples[:1], samples[:3], samples):
        with torch.inference_mode():
            wanted = graph(part)
            found = computed(part)
        for name, ours, theirs in zip(graph.outputs, wanted, found, strict=True):
            difference = float(np.abs(ours.numpy() - theirs).max())
            if not difference <= TOLERANCE:
                raise UserError(
                    f"the exported graph's {name} differs by {difference:.2g} from the model's, more than {TOLERANCE}; "
                    "nothing was written; use --to folder"
                )
            largest = max(largest, difference)
    return largest


def _distances(left: Any, right: Any, power: float, mode: int | None = None) -> Any:
    """torch.cdist [B, D] x [N, D] -> [B, N] in ONNX, for which torch has no translation; Euclidean distances."""
    from onnxscript import opset18

    op: Any = opset18  # whose types know no lists of numbers
    assert power == 2
    apart = op.Sub(op.Unsqueeze(left, [1]), op.Unsqueeze(right, [0]))
    return op.ReduceL2(apart, [2], keepdims=0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings, which are of torch's own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _name(model: TrainedModel) -> str:
    return model.method.config.name


def _reason(error: Exception) -> str:
    """The first line of an exporter's error that says something."""
    cause = error.__cause__ or error
    return next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)[:200]
