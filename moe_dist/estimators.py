"""EDCWRN, IDEC and DEC as scikit-learn estimators, trained by the same loop as a job, without a job file or Ray.

Letters: n samples, D numbers of one, Q clusters, d numbers of a code, S side of a square image.
"""

from __future__ import annotations

import copy
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from rich.console import Console
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from moe_dist.data.bad_samples import NONE_ALLOWED
from moe_dist.data.batch import DatasetInfo
from moe_dist.data.image.crops import RandomCrop
from moe_dist.data.opened.opened import OpenedData, OpenedSplit
from moe_dist.engine.checkpoint import load_arrays
from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.job import Job, parse_job
from moe_dist.methods.edcwrn.method import Edcwrn
from moe_dist.methods.edcwrn.network import ClusteringNetwork
from moe_dist.methods.phases import Stage
from moe_dist.methods.registry import method_class
from moe_dist.terminal import Show, console
from moe_dist.train.checkpoints import newest_checkpoint
from moe_dist.train.loop import train_stages
from moe_dist.train.task import Training, TrainingTask
from moe_dist.train.worker import LocalWorker

Auto = Literal["auto"]
TARGETS_EVERY_EPOCHS = 3.5
"""`update_interval: auto`: what the paper's 140 steps are on MNIST-test."""
RATE_OF_IMAGES, RATE_OF_VECTORS = 0.1, 0.01
"""`learning_rate: auto`: the paper's for pixels in [0, 1]; numbers of variance 1 it drives all into one cluster."""
AT_ONCE = 1024
"""New samples whose codes are computed at once."""


class ArraySamples:
    """Images [n, 3, S, S] uint8 or vectors [n, D] float32 of this process."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def uint8(self, samples: np.ndarray, crop: RandomCrop | None = None) -> Tensor:
        """See Images; there are no crops."""
        assert crop is None
        return self.values[torch.from_numpy(samples)]

    def readable(self, samples: np.ndarray) -> np.ndarray:
        """All are."""
        return np.ones(len(samples), bool)


class _Progress:
    """A training's log: keeps what every update of the target told, and shows how far the training is."""

    def __init__(self, show: Show, history: list[dict[str, float]]) -> None:
        self._show, self._history = show, history

    def write(self, kind: str, stage: str, epoch: int, step: int, values: dict[str, float], **facts: Any) -> None:
        """See Log."""
        if kind == "refresh":
            self._history.append({"step": step, **values})
        note = f"step {step:,}" + (f", {values['changed']:.1%} of the labels changed" if "changed" in values else "")
        self._show.update(step, facts["of_steps"], note)

    def close(self) -> None:
        """See Log."""


class DeepClusterer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """What the three have in common. X: vectors [n, D], or square uint8 images [n, S, S] or [n, S, S, 3].

    Attributes of a fitted one: labels_ [n]; cluster_centers_ [Q, d] in the space of codes; feature_weights_ [Q, d];
    n_iter_, steps of the clustering; history_, what every update of the target told.

    n_clusters: Q. hidden, code: widths of the encoder, d. pretrain_steps, max_steps, update_interval: steps of Adam by
    reconstruction, most steps of the clustering, and steps between two updates of the target; auto: in proportion to n.
    n_starts: optima of k-means that are tried, for two updates of the target each, before one is clustered in full.
    spread: how far codes are from their centre at the start. See StartsConfig and EdcwrnConfig.
    learning_rate: of the clustering; auto: 0.1 for images, 0.01 for vectors.
    tolerance: the clustering ends where less than this share of the labels changed between two updates. scaling: of
    vectors, as in AutoEncoderConfig. augment: changes of images in training, as in AugmentConfig. verbose: 1 shows how
    long it will take. device: cpu or cuda.
    """

    method: ClassVar[str]
    known: ClassVar[Mapping[str, str]] = {}
    """Further parameters -> their path in the method's configuration."""
    image_shape_: tuple[int, ...]

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        hidden: tuple[int, ...] = (500, 500, 2000),
        code: int = 10,
        pretrain_steps: int | Auto = "auto",
        max_steps: int | Auto = "auto",
        update_interval: int | Auto = "auto",
        tolerance: float = 0.001,
        batch_size: int = 256,
        learning_rate: float | Auto = "auto",
        clustering_weight: float = 0.1,
        n_starts: int = 1,
        spread: float | None = None,
        scaling: Literal["none", "standard", "power"] = "standard",
        augment: Mapping[str, Any] | None = None,
        random_state: Any = None,
        verbose: int = 0,
        device: str = "cpu",
    ) -> None:
        self.n_clusters = n_clusters
        self.hidden = hidden
        self.code = code
        self.pretrain_steps = pretrain_steps
        self.max_steps = max_steps
        self.update_interval = update_interval
        self.tolerance = tolerance
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.clustering_weight = clustering_weight
        self.n_starts = n_starts
        self.spread = spread
        self.scaling = scaling
        self.augment = augment
        self.random_state = random_state
        self.verbose = verbose
        self.device = device

    def fit(self, X: Any, y: Any = None) -> DeepClusterer:
        """Pretrain, and cluster X; y is not looked at.

        Raises ValueError where a number of X is missing or infinite, or there are fewer samples than clusters or
        neighbours need; UserError where a parameter is not allowed.
        """
        values = self._samples(X, reset=True)
        if len(values) < self.n_clusters:
            raise ValueError(f"n_samples={len(values)} should be >= n_clusters={self.n_clusters}")
        if len(values) <= getattr(self, "n_neighbors", 0):
            raise ValueError(f"n_samples={len(values)} should be > n_neighbors={self.n_neighbors}")  # type: ignore[attr-defined]
        job = self._job(values)
        data = _opened(job, values, self.n_clusters)
        assert job.method is not None
        method = method_class(job.method.name)(job.method, data.info)
        assert isinstance(method, Edcwrn)
        trained: dict[str, nn.Module] = {}
        for stage in method.stages():
            self.history_: list[dict[str, float]] = []
            network, arrays = self._train(job, method, stage, data, trained)
            trained[stage.name] = network.cpu()
        assert isinstance(network, ClusteringNetwork)
        self._method, self._network = method, network.cpu().double().eval()
        self.labels_ = arrays["label"].astype(np.int32)
        if (found := len(np.unique(self.labels_))) < self.n_clusters:
            warnings.warn(
                f"{found} of the {self.n_clusters} clusters have samples: lower learning_rate (it was "
                f"{method.config.optimiser.learning_rate:g}), or pretrain longer",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.cluster_centers_ = network.centres.detach().numpy().copy()
        self.feature_weights_ = network.weights.numpy().copy()
        self._n_features_out = network.centres.shape[1]
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The cluster [n] int32 of each sample, whose neighbours are among the samples of `fit`."""
        return self._of_new(X, lambda codes, log_q: log_q.argmax(1)).astype(np.int32)

    def transform(self, X: Any) -> np.ndarray:
        """The codes [n, d]."""
        return self._of_new(X, lambda codes, log_q: codes)

    def predict_proba(self, X: Any) -> np.ndarray:
        """The soft assignments [n, Q], normalised over the clusters."""
        return self._of_new(X, lambda codes, log_q: log_q.softmax(1))

    def _of_new(self, X: Any, function: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
        """A function of the codes and log q of new samples, in float64: equal in whatever batch."""
        check_is_fitted(self)
        values = self._samples(X, reset=False)
        with torch.inference_mode():
            parts = [function(*self._method.assign_new(self._network, _shown(part))) for part in values.split(AT_ONCE)]
        return torch.cat(parts).numpy()

    def _samples(self, X: Any, reset: bool) -> Tensor:
        """X as images [n, 3, S, S] uint8 or vectors [n, D] float32."""
        if getattr(X, "dtype", None) == np.uint8 and getattr(X, "ndim", 0) in (3, 4):
            images = np.asarray(X)
            if images.shape[1] != images.shape[2] or images.shape[3:] not in ((), (1,), (3,)):
                raise ValueError(f"images are [n, S, S] or [n, S, S, 3], got {list(images.shape)}")
            if not reset and images.shape[1:3] != self.image_shape_:
                raise ValueError(f"images of {images.shape[1]} pixels, fitted with {self.image_shape_}")
            self.image_shape_ = images.shape[1:3]
            channels = images[..., None] if images.ndim == 3 else images
            return torch.tensor(channels).permute(0, 3, 1, 2).expand(-1, 3, -1, -1).contiguous()
        checked = validate_data(self, X, dtype=np.float64, reset=reset, ensure_min_samples=2 if reset else 1)
        return torch.from_numpy(checked.astype(np.float32))

    def _job(self, values: Tensor) -> Job:
        images = values.dim() == 4
        batch = min(self.batch_size, len(values))
        epoch = math.ceil(len(values) / batch)
        pretrain = _steps(self.pretrain_steps, 300 * epoch, 500, 30_000)
        every = _steps(self.update_interval, round(TARGETS_EVERY_EPOCHS * epoch), 10, 140)
        rate = (RATE_OF_IMAGES if images else RATE_OF_VECTORS) if self.learning_rate == "auto" else self.learning_rate
        method: dict[str, Any] = {
            "name": self.method,
            "clusters": self.n_clusters,
            "network": {
                "hidden": self.hidden,
                "code": self.code,
                "scaling": "none" if images else self.scaling,
                "colour": images and not bool((values[:, :1] == values).all()),
            },
            "pretrain": {"steps": pretrain},
            "augment": dict(self.augment or {}),
            "batch_size": batch,
            "clustering_weight": self.clustering_weight,
            "starts": {"count": self.n_starts, "steps": 2 * every},
            "spread": self.spread,
            "optimiser": {"kind": "sgd", "learning_rate": rate},
            "steps": _steps(self.max_steps, 500 * epoch, 500, 20_000),
            "refresh_every": every,
            "tolerance": self.tolerance,
        }
        if self.method == "edcwrn":
            method["weighting"] = {"total": "size"}
        for name, path in self.known.items():
            section, _, field = path.rpartition(".")
            (method.setdefault(section, {}) if section else method)[field] = getattr(self, name)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        data = {"image_size": max(8, values.shape[-1]) if images else 8, "mean": (0, 0, 0), "std": (1, 1, 1)}
        checkpoint = {"every_epochs": 2**31, "keep": 1}
        content = {"name": "fit", "kind": "train", "seed": seed, "data": data, "method": method}
        return parse_job(content | {"checkpoint": checkpoint}, type(self).__name__)

    def _train(
        self, job: Job, method: Edcwrn, stage: Stage, data: OpenedData, trained: Mapping[str, nn.Module]
    ) -> tuple[nn.Module, dict[str, np.ndarray]]:
        """The network that a stage leaves, and the arrays of its last refresh; trained: earlier stages' networks."""
        assert stage.build is not None
        before = {name: copy.deepcopy(network) for name, network in trained.items()}  # building changes them
        network = stage.build(IN_ONE_PROCESS, {}, before.__getitem__, job.seed).to(self.device)
        show = Show(console if self.verbose else Console(quiet=True))
        with tempfile.TemporaryDirectory() as name, show.working(stage.title):
            folder = Path(name)
            task = TrainingTask(job, self.method, folder, folder, "", folder, stages=(stage.name,))
            training = Training(task, method, [stage], network, data, {}, "fp32", deepspeed=False)  # type: ignore[arg-type]
            worker = LocalWorker(task.checkpoints, 1, 0, 1, torch.device(self.device))
            train_stages(worker, training, _Progress(show, self.history_), None)
            newest = newest_checkpoint(task.checkpoints)
            assert newest is not None
            arrays = {key: values.copy() for key, values in load_arrays(newest).items()}
        if self.history_:
            self.n_iter_ = int(self.history_[-1]["step"])
        return network, arrays


class DEC(DeepClusterer):
    """Deep embedded clustering (Xie, Girshick and Farhadi, 2016)."""

    method = "dec"


class IDEC(DeepClusterer):
    """Improved deep embedded clustering (Guo et al., 2017), which keeps the reconstruction."""

    method = "idec"


class EDCWRN(DeepClusterer):
    """EDCWRN (Golzari Oskouei et al., 2022): codes are made of a sample and its neighbours, and their numbers weighed.

    n_neighbors: k; 0 leaves neighbours out. weighting: whether the numbers of a code have weights. scope: batch or all,
    see NeighboursConfig. alpha: of the weights. Further parameters are those of DeepClusterer.
    """

    method = "edcwrn"
    known: ClassVar = {
        "n_neighbors": "neighbours.count",
        "scope": "neighbours.scope",
        "weighting": "weighting.enabled",
        "alpha": "weighting.alpha",
    }

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        n_neighbors: int = 2,
        scope: Literal["batch", "all"] = "all",
        weighting: bool = True,
        alpha: float = 2.0,
        hidden: tuple[int, ...] = (500, 500, 2000),
        code: int = 10,
        pretrain_steps: int | Auto = "auto",
        max_steps: int | Auto = "auto",
        update_interval: int | Auto = "auto",
        tolerance: float = 0.001,
        batch_size: int = 256,
        learning_rate: float | Auto = "auto",
        clustering_weight: float = 0.1,
        n_starts: int = 1,
        spread: float | None = None,
        scaling: Literal["none", "standard", "power"] = "standard",
        augment: Mapping[str, Any] | None = None,
        random_state: Any = None,
        verbose: int = 0,
        device: str = "cpu",
    ) -> None:
        super().__init__(
            n_clusters,
            hidden=hidden,
            code=code,
            pretrain_steps=pretrain_steps,
            max_steps=max_steps,
            update_interval=update_interval,
            tolerance=tolerance,
            batch_size=batch_size,
            learning_rate=learning_rate,
            clustering_weight=clustering_weight,
            n_starts=n_starts,
            spread=spread,
            scaling=scaling,
            augment=augment,
            random_state=random_state,
            verbose=verbose,
            device=device,
        )
        self.n_neighbors = n_neighbors
        self.scope = scope
        self.weighting = weighting
        self.alpha = alpha


def _steps(asked: int | Auto, automatic: int, least: int, most: int) -> int:
    return asked if asked != "auto" else min(max(automatic, least), most)


def _shown(values: Tensor) -> Tensor:
    """Samples as the network's double copy sees them: images in [0, 1]."""
    return values.double() / 255 if values.dim() == 4 else values.double()


def _opened(job: Job, values: Tensor, clusters: int) -> OpenedData:
    """The samples as the loop reads a dataset: all of them are trained on, and none has a label."""
    count = len(values)
    everything, none = np.arange(count), np.full(count, -1)
    split = OpenedSplit(ArraySamples(values), none, none, np.zeros(count, np.int64), lambda: [*map(str, range(count))])
    names = tuple(map(str, range(clusters)))
    size = values.shape[-1]
    info = DatasetInfo(clusters, names, size, count, vector_size=size if values.dim() == 2 else 0)
    return OpenedData(
        config=job.data,
        shards="",
        info=info,
        train=split,
        val=split,
        test=split,
        train_samples=everything,
        val_samples=everything[:0],
        test_samples=everything,
        digests={},
        split_digest="",
        bad_samples=copy.copy(NONE_ALLOWED),
    )
