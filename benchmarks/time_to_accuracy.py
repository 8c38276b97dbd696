"""Seconds, pretraining included, until a deep clustering of MNIST's test images is right on 97 %: ours and ClustPy's.

A part of deep_clustering.py, which says how to run it. All have the network 784-500-500-2000-10 and batches of 256.

ours_idec, ours_edcwrn: moe_dist.IDEC and EDCWRN; SGD of rate 1.0, targets every 140 steps, Table 1's changes of images.
clustpy_idec: clustpy.deep.IDEC, its Adam and rates, as many steps of pretraining, ReLU inside, and batches that are
changed as ours are, by our code: torchvision's transforms, image by image, would be slower.
clustpy_defaults: the same without changes of images, as it comes: 100 epochs of pretraining, 150 of clustering.

A training ends at the goal, or after --cluster-steps. Ours is looked at where it has its labels, at every target;
ClustPy's, which has none before its end, as often, and the clocks stand still while it is. ClustPy is no requirement of
moe_dist: `pip install clustpy`, or `pip install --no-deps --target FOLDER clustpy` with FOLDER on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib.metadata
import importlib.util
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from moe_dist import EDCWRN, IDEC
from moe_dist.data.augment.augment import DRAWS, augment
from moe_dist.data.datasets.idx import parse_idx
from moe_dist.estimators import DeepClusterer
from moe_dist.methods.edcwrn import method as edcwrn
from moe_dist.methods.edcwrn.update import update
from moe_dist.metrics.clustering import clustering_metrics
from moe_dist.settings.augment import AugmentConfig
from moe_dist.vision import torchvision

GOAL = 0.97
CLUSTERS, BATCH, LAYERS = 10, 256, [784, 500, 500, 2000, 10]
TARGET_EVERY = 140
TABLE_1 = {"shift": 0.1, "rotate": 10.0, "zoom": 0.1}
MISSING = "ClustPy is not installed, and its part is skipped: pip install clustpy"


class Reached(Exception):
    """The goal is reached."""


class Watch:
    """Looks at a training's labels; its clocks can stand still meanwhile."""

    def __init__(self, true: np.ndarray) -> None:
        self.true, self.looks = true, []
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def look(self, step: int, labels: Callable[[], np.ndarray], stopped: bool) -> None:
        """Note the accuracy of the labels after so many steps of clustering. Raises Reached."""
        wall, cpu = time.perf_counter(), time.process_time()
        accuracy = clustering_metrics(labels(), self.true)["accuracy"]
        seconds = (wall - self._wall, cpu - self._cpu)
        self.looks.append((step, round(accuracy, 4), *(round(each, 1) for each in seconds)))
        print(f"  step {step}: {accuracy:.2%} after {seconds[0]:.0f} s, {seconds[1]:.0f} s of CPU time", flush=True)
        if stopped:
            self._wall += time.perf_counter() - wall
            self._cpu += time.process_time() - cpu
        if accuracy >= GOAL:
            raise Reached

    def result(self) -> dict[str, Any]:
        """What was seen; seconds of the pretraining, k-means and codes included, and of all."""
        names = ("step", "accuracy", "wall_seconds", "cpu_seconds")
        first, last = (dict(zip(names, look)) for look in (self.looks[0], self.looks[-1]))
        before = {f"pretraining_{name}": first[name] for name in names[2:]} | {"accuracy_at_first": first["accuracy"]}
        return {"reached": last["accuracy"] >= GOAL, **last, **before}


def time_to_accuracy(options: argparse.Namespace) -> dict[str, Any]:
    """The results by contender, of one seed; ClustPy's are left out, with a sentence, where it is not installed."""
    images, true = mnist_test(options.mnist)
    installed = importlib.util.find_spec("clustpy") is not None
    if not installed:
        print(MISSING)
    found: dict[str, Any] = {"clustpy": importlib.metadata.version("clustpy")} if installed else {}
    for name in options.contenders:
        if name.startswith("clustpy") and not installed:
            continue
        print(name, flush=True)
        watch = Watch(true)
        with contextlib.suppress(Reached):
            CONTENDERS[name](images, watch, options)
        found[name] = watch.result()
    return found


def mnist_test(source: Path) -> tuple[np.ndarray, np.ndarray]:
    """The images [n, 28, 28] uint8 of MNIST's test split, and their labels [n]."""
    kinds = ("images-idx3", "labels-idx1")
    images, labels = (parse_idx(gzip.decompress((source / f"t10k-{kind}-ubyte.gz").read_bytes())) for kind in kinds)
    return images.copy(), labels.astype(np.int64)


def ours(kind: type[DeepClusterer], images: np.ndarray, watch: Watch, options: argparse.Namespace) -> None:
    """Train an estimator of ours, and look at the labels of every target."""
    targets = 0

    def watched(*arguments: Any) -> dict[str, np.ndarray]:
        nonlocal targets
        found = update(*arguments)
        step = min(targets * TARGET_EVERY, options.cluster_steps)
        watch.look(step, lambda: found["label"], stopped=False)
        targets += 1
        return found

    model = kind(
        CLUSTERS,
        augment=TABLE_1,
        learning_rate=1.0,
        pretrain_steps=options.pretrain_steps,
        update_interval=TARGET_EVERY,
        max_steps=options.cluster_steps,
        random_state=options.seed,
    )
    with mock.patch.object(edcwrn, "update", watched):
        model.fit(images)


class ChangedBatches(DataLoader):
    """ClustPy's batches [rows, inputs] of images that are changed at random."""

    def __init__(self, images: np.ndarray, seed: int) -> None:
        self._images, self._draws = torch.from_numpy(images), np.random.default_rng(seed)
        rows = TensorDataset(torch.arange(len(images)), torch.from_numpy(flat(images)))
        super().__init__(rows, batch_size=BATCH, shuffle=True)

    def __iter__(self) -> Iterator[list[Tensor]]:  # type: ignore[override]
        for rows, _ in super().__iter__():
            grey = self._images[rows][:, None]
            changed = augment(grey, AugmentConfig.model_validate(TABLE_1), self._draws.random((len(rows), DRAWS)))
            yield [rows, changed.flatten(1) / 255]


def flat(images: np.ndarray) -> np.ndarray:
    """Images [n, 28, 28] as inputs [n, 784] of 0 to 1."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def clustpy(changed: bool, images: np.ndarray, watch: Watch, options: argparse.Namespace) -> None:
    """Train ClustPy's IDEC, and look at its labels as often as ours has a target."""
    torchvision()  # ClustPy imports it, and it loads beside a CPU-only torch only so
    from clustpy.deep import IDEC as Theirs
    from clustpy.deep.dec import _DEC_Module
    from clustpy.deep.neural_networks import FeedforwardAutoencoder

    inputs, an_epoch = flat(images), -(-len(images) // BATCH)
    real, everything = _DEC_Module.fit, torch.from_numpy(inputs)

    def fit(module: nn.Module, network: nn.Module, batches: DataLoader, *arguments: Any) -> Any:
        def labels() -> np.ndarray:
            with torch.inference_mode():
                return module.predict_hard(network.encode(everything)).numpy()  # type: ignore[operator]

        return real(module, network, Watched(batches, watch, labels), *arguments)

    model = Theirs(
        CLUSTERS,
        batch_size=BATCH,
        neural_network=(FeedforwardAutoencoder, {"layers": LAYERS, "activation_fn": nn.ReLU}),
        pretrain_epochs=options.pretrain_steps // an_epoch if changed else 100,
        clustering_epochs=-(-options.cluster_steps // an_epoch) if changed else 150,
        custom_dataloaders=(ChangedBatches(images, options.seed), plain(inputs)) if changed else None,
        device="cpu",
        random_state=options.seed,
    )
    with mock.patch.object(_DEC_Module, "fit", fit):
        model.fit(inputs)


def plain(inputs: np.ndarray) -> DataLoader:
    """ClustPy's batches in order, without changes."""
    return DataLoader(TensorDataset(torch.arange(len(inputs)), torch.from_numpy(inputs)), batch_size=BATCH)


class Watched:
    """Batches of a clustering, with looks between them."""

    def __init__(self, batches: DataLoader, watch: Watch, labels: Callable[[], np.ndarray]) -> None:
        self._batches, self._watch, self._labels, self._step = batches, watch, labels, 0

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            if self._step % TARGET_EVERY == 0:
                self._watch.look(self._step, self._labels, stopped=True)
            self._step += 1
            yield batch


CONTENDERS: dict[str, Callable[[np.ndarray, Watch, argparse.Namespace], None]] = {
    "ours_idec": partial(ours, IDEC),
    "ours_edcwrn": partial(ours, EDCWRN),
    "clustpy_idec": partial(clustpy, True),
    "clustpy_defaults": partial(clustpy, False),
}
