"""How long predictions take: DFCP-MoE against a dense network, a small one and the traditional mixture, torch and ONNX.

    python benchmarks/inference.py [--threads 1 2] [--rounds 10] [--sides 32 64]

dense: EfficientNet-B1, which the paper compares with. small: timm's resnet10t, which jobs/dfcp/gtsrb.yaml trains with
the label of every image. dfcp, traditional: 43 experts of Table 1's widths and the managing network.
all, top-3, top-1: experts that are computed. loop: all experts one after another; the others are packed
(methods/dfcp/packed.py). onnx: the exported graph under onnxruntime, which computes all experts.

Weights are random: they change no time. accuracy is that of the same network trained on GTSRB at 32 pixels, from the
record of jobs/dfcp/gtsrb.yaml. Contenders take turns in one process. p50_ms, p99_ms: by the wall, of single images;
over_dense: the median over rounds of the ratio of their medians to dense's. cpu_ms: the processor's time of one image,
cpu_over_dense its ratio; other programs disturb it less, and threads that wait for each other count in it.
images_per_second: of 256 at once, by the wall.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from machine import machine
from torch import Tensor, nn

from moe_dist.data.batch import DatasetInfo
from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.methods.base import Method
from moe_dist.methods.registry import method_class
from moe_dist.use.graph import ONNX, export_onnx
from moe_dist.use.model import TrainedModel
from moe_dist.use.preprocess import Preprocessing

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "inference.json"
EXPERTS = HERE.parent / "jobs" / "dfcp" / "table1.yaml"
RECORD = HERE.parent / "docs" / "records" / "dfcp_gtsrb.json"
TRAINED_SIDE = 32
TRAINED = {
    "small": ("small", "top1"),
    "traditional all": ("traditional_moe", "top1"),
    "dfcp all": ("dfcp", "top1"),
    "dfcp top-3": ("dfcp", "top1_k3"),
    "dfcp top-1": ("dfcp", "top1_k1"),
}
"""A contender's method in the record, and the metric that is its accuracy."""
CLASSES, LARGE, SINGLE = 43, 256, 10
"""SINGLE: images that a contender is given one by one in a round."""
Predict = Callable[[Tensor], Any]


def main() -> None:
    """Measure, print and write results/inference.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64])
    options = parser.parse_args()
    content: dict[str, Any] = {**machine(), "rounds": options.rounds}
    for threads in options.threads:
        torch.set_num_threads(threads)
        for side in options.sides:
            torch.manual_seed(0)
            found = measured(contenders(side, threads), side, options.rounds)
            if side == TRAINED_SIDE:
                add_accuracies(found)
            content[title := f"{side} px, {threads} thread" + "s" * (threads > 1)] = found
            print(title, json.dumps(found, indent=1), flush=True)
    content["load_after"] = round(os.getloadavg()[0], 1)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


def contenders(side: int, threads: int) -> dict[str, Predict]:
    """What predicts images of `side` pixels, by its name."""
    experts = yaml.safe_load(EXPERTS.read_text())
    dfcp = model_of("dfcp", side, experts=experts)
    traditional = model_of("traditional_moe", side, experts=experts)
    dense = model_of("dense", side, backbone="efficientnet_b1", weights=None)
    small = model_of("dense", side, backbone="timm/resnet10t", weights=None)
    looping = dfcp.method.build(IN_ONE_PROCESS, {}, 0).eval()
    return {
        "dense": lambda images: dense(images),
        "small": lambda images: small(images),
        "traditional all": lambda images: traditional(images),
        "dfcp all": lambda images: dfcp(images),
        "dfcp all, loop": lambda images: dfcp.method.predict(looping, images),
        "dfcp top-3": lambda images: dfcp.method.predict(dfcp.network, images, 3),
        "dfcp top-1": lambda images: dfcp.method.predict(dfcp.network, images, 1),
        "managing network alone": lambda images: dfcp.network.get_submodule("gate")(images),
        **{f"{name}, onnx": in_onnx(model, threads) for name, model in (("dense", dense), ("dfcp all", dfcp))},
    }


def model_of(name: str, side: int, **settings: Any) -> TrainedModel:
    """A method's model with random weights, as `moe_dist.load` gives it."""
    names = tuple(str(label) for label in range(CLASSES))
    info = DatasetInfo(CLASSES, names, side, 10 * CLASSES, (10,) * CLASSES)
    config = method_class(name).Config.model_validate({"name": name, **settings})
    method: Method = method_class(name)(config, info)
    network: nn.Module = method.build(IN_ONE_PROCESS, {}, 0)
    return TrainedModel(method, network, Preprocessing(side, "center", (0.5,) * 3, (0.25,) * 3), {})


def in_onnx(model: TrainedModel, threads: int) -> Predict:
    """A model as an ONNX graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        shown = model.preprocessing.normalised(model.preprocessing.empty(4))
        export_onnx(model, Path(folder), shown)
        session = onnxruntime.InferenceSession(Path(folder) / ONNX, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"samples": images.numpy()})


@torch.inference_mode()
def measured(predicts: dict[str, Predict], side: int, rounds: int) -> dict[str, dict[str, Any]]:
    """The times of every contender, who take turns in each round; the first round warms up."""
    one, many = torch.randn(1, 3, side, side), torch.randn(LARGE, 3, side, side)
    wall: dict[str, list[list[float]]] = {name: [] for name in predicts}
    cpu: dict[str, list[float]] = {name: [] for name in predicts}
    large: dict[str, list[float]] = {name: [] for name in predicts}
    for number in range(-1, rounds):
        for name, predict in predicts.items():
            began = time.process_time()
            walls = [seconds_of(predict, one) for _ in range(SINGLE)]
            taken = (time.process_time() - began) / SINGLE
            seconds = seconds_of(predict, many)
            if number >= 0:
                wall[name].append(walls)
                cpu[name].append(taken)
                large[name].append(seconds)
    middle = {name: [statistics.median(walls) for walls in each] for name, each in wall.items()}
    return {
        name: {
            "p50_ms": rounded(1e3 * np.percentile(wall[name], 50)),
            "p99_ms": rounded(1e3 * np.percentile(wall[name], 99)),
            "over_dense": rounded(ratio(middle[name], middle["dense"])),
            "cpu_ms": rounded(1e3 * statistics.median(cpu[name])),
            "cpu_over_dense": rounded(ratio(cpu[name], cpu["dense"])),
            "images_per_second": rounded(LARGE / statistics.median(large[name])),
        }
        for name in predicts
    }


def seconds_of(predict: Predict, images: Tensor) -> float:
    """Seconds of one call, by the wall."""
    started = time.perf_counter()
    predict(images)
    return time.perf_counter() - started


def ratio(values: list[float], others: list[float]) -> float:
    """The median over rounds of one contender's figure over another's."""
    return statistics.median(a / b for a, b in zip(values, others))


def add_accuracies(found: dict[str, dict[str, Any]]) -> None:
    """Set each contender's accuracy on GTSRB's test images: of seed 0 in the record, "not run" where it has none."""
    cells = {
        cell["at"]["method"]: cell for cell in json.loads(RECORD.read_text())["cells"] if cell["at"]["seed"] == "0"
    }
    for name, values in found.items():
        method, metric = TRAINED.get(name, ("", ""))
        metrics = cells.get(method, {}).get("metrics") or {}
        values["accuracy"] = round(metrics[metric], 4) if metric in metrics else "not run"


def rounded(value: float) -> float:
    """A figure with three digits."""
    return float(f"{value:.3g}")


if __name__ == "__main__":
    main()
