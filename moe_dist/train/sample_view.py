"""The images of a stage's training set for `prepare` and `refresh`: not augmented, in order, shared over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from torch import Tensor

from moe_dist.data.batch import Batch, TrainingSet
from moe_dist.data.order import epoch_order
from moe_dist.data.stream.stream import evaluation_batches
from moe_dist.methods.phases import Stage
from moe_dist.train.task import EVALUATION_BATCH, Training
from moe_dist.train.worker import Worker, from_first_rank, sum_into_all


class SampleView:
    """Implements methods/phases.py: StageSamples. The training set is opened when it is first needed."""

    def __init__(self, training: Training, stage: Stage, worker: Worker) -> None:
        self._training, self._stage, self._worker = training, stage, worker
        self.seed, self.device = training.task.job.seed, worker.device

    @property
    def _set(self) -> TrainingSet:
        return self._training.training_set(self._stage)

    @property
    def samples(self) -> np.ndarray:
        """The numbers [N] of the stage's samples."""
        return self._set.samples

    @property
    def labels(self) -> np.ndarray:
        """The labels [N] of these samples."""
        return self._set.labels

    def first(self, count: int) -> Batch:
        """The first `count` samples of the set, shuffled by the seed."""
        rows = epoch_order(len(self.samples), self.seed, 0)[:count]
        return next(self._batches(rows, count))

    def outputs(self, function: Callable[[Batch], Mapping[str, Tensor]]) -> dict[str, np.ndarray]:
        """The results of `function` for all samples, arrays [N, ...] by name. Collective.

        The batches do not depend on the number of ranks, which take them in turn, so neither do the results.
        """
        count, worker = len(self.samples), self._worker
        found: dict[str, np.ndarray] = {}
        starts = range(0, count, EVALUATION_BATCH)
        mine = [np.arange(start, min(start + EVALUATION_BATCH, count)) for start in starts[worker.rank :: worker.ranks]]
        shapes = self._shapes(function)  # a rank without a batch contributes zeros
        for name, (shape, dtype) in shapes.items():
            found[name] = np.zeros((count, *shape), dtype)
        for rows in mine:
            for name, output in function(next(self._batches(rows, len(rows)))).items():
                found[name][rows] = _as_array(output)
        return sum_into_all(found, worker.ranks, worker.device)

    def _shapes(self, function: Callable[[Batch], Mapping[str, Tensor]]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        one = function(next(self._batches(np.arange(min(2, len(self.samples))), 2)))
        return {name: (tuple(output.shape[1:]), _as_array(output).dtype) for name, output in one.items()}

    def on_one_rank(self, function: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The result of `function` on the first rank, sent to all ranks. Collective."""
        return from_first_rank(function, self._worker.rank, self._worker.ranks)

    def _batches(self, rows: np.ndarray, size: int) -> Iterator[Batch]:
        training_set = self._set
        return evaluation_batches(
            self._training.data.train.images,
            training_set.samples[rows],
            training_set.labels[rows],
            self._training.data.config,
            batch_size=size,
            device=self.device,
        )


def _as_array(output: Tensor) -> np.ndarray:
    values = output.detach().float() if output.is_floating_point() else output.detach()
    return values.cpu().numpy()
