"""The images of a stage's training set for `prepare` and `refresh`: not augmented, in order, shared over ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

from moe_dist.data.batch import Batch
from moe_dist.data.order import epoch_order
from moe_dist.data.stream.stream import evaluation_batches
from moe_dist.methods.phases import Stage
from moe_dist.train.task import EVALUATION_BATCH, Training
from moe_dist.train.worker import Worker, from_first_rank, sum_into_all


class SampleView:
    """Implements methods/phases.py: StageSamples."""

    def __init__(self, training: Training, stage: Stage, worker: Worker) -> None:
        training_set = training.training_set(stage)
        self.samples, self.labels = training_set.samples, training_set.labels
        self.seed, self.device = training.task.job.seed, worker.device
        self._data, self._worker = training.data, worker

    def first(self, count: int) -> Batch:
        """The first `count` samples of the set, shuffled by the seed."""
        return self._batch(epoch_order(len(self.samples), self.seed, 0)[:count], count)

    def outputs(self, function: Callable[[Batch], Mapping[str, Tensor]]) -> dict[str, np.ndarray]:
        """The results of `function` for all samples, arrays [N, ...] by name. Collective.

        The batches do not depend on the number of ranks, which take them in turn, so neither do the results.
        """
        count, worker = len(self.samples), self._worker
        # the shapes come from two samples, because a rank without a batch contributes zeros
        sample = {
            name: _as_array(output) for name, output in function(self._batch(np.arange(min(2, count)), 2)).items()
        }
        found = {name: np.zeros((count, *values.shape[1:]), values.dtype) for name, values in sample.items()}
        for start in range(0, count, EVALUATION_BATCH)[worker.rank :: worker.ranks]:
            rows = np.arange(start, min(start + EVALUATION_BATCH, count))
            for name, output in function(self._batch(rows, len(rows))).items():
                found[name][rows] = _as_array(output)
        return sum_into_all(found, worker.ranks, worker.device)

    def on_one_rank(self, function: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The result of `function` on the first rank, sent to all ranks. Collective."""
        return from_first_rank(lambda: dict(function()), self._worker.rank, self._worker.ranks)

    def _batch(self, rows: np.ndarray, size: int) -> Batch:
        """The first batch of `size` of the set's rows `rows`."""
        images, samples, labels = self._data.train.images, self.samples[rows], self.labels[rows]
        return next(evaluation_batches(images, samples, labels, self._data.config, batch_size=size, device=self.device))


def _as_array(output: Tensor) -> np.ndarray:
    values = output.detach().float() if output.is_floating_point() else output.detach()
    return values.cpu().numpy()
