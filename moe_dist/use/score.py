"""How well predictions agree with the classes that are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from moe_dist.metrics.calibration import calibration_error
from moe_dist.metrics.classification import wilson_interval
from moe_dist.metrics.clustering import clustering_metrics
from moe_dist.use.rows import Row


class Score:
    """Counts rows. predicts, names: what the model predicts, and the names of it; classes: of the training."""

    def __init__(self, predicts: Literal["classes", "clusters"], names: Sequence[str], classes: Sequence[str]) -> None:
        self._predicts = predicts
        self._numbers = {name: number for number, name in enumerate(names)}
        self._classes = {name: number for number, name in enumerate(classes)}
        self.samples = self.bad = self.rejected = 0
        self._predicted: list[int] = []
        self._labels: list[int] = []
        self._probabilities: list[float] = []
        self._accepted: list[bool] = []

    def add(self, rows: Iterable[Row]) -> None:
        """Count rows, those without a prediction only as bad ones."""
        for row in rows:
            self.samples += 1
            self.bad += row.predicted is None
            self.rejected += row.rejected
            if row.predicted is not None and row.label is not None:
                self._probabilities.append(row.best[0][1])
                self._accepted.append(not row.rejected)
                self._predicted.append(self._numbers[row.predicted])
                self._labels.append(self._classes.setdefault(row.label, len(self._classes)))

    def values(self) -> dict[str, Any]:
        """samples, bad, rejected, coverage (the share of predicted samples that are not rejected).

        Where classes are known also top1 with its 95 % interval, ece, and top1 of those that are not rejected; or of
        clusters accuracy, nmi and ari.
        """
        found: dict[str, Any] = {"samples": self.samples, "bad": self.bad, "rejected": self.rejected}
        if predictions := self.samples - self.bad:
            found["coverage"] = 1 - self.rejected / predictions
        if not self._labels:
            return found
        labels, predicted = np.array(self._labels), np.array(self._predicted)
        found["labelled"] = len(labels)
        if self._predicts == "clusters":
            return found | dict(clustering_metrics(predicted, labels))
        right, accepted = predicted == labels, np.array(self._accepted)
        low, high = wilson_interval(int(right.sum()), len(labels))
        found |= {"top1": float(right.mean()), "top1_low": low, "top1_high": high}
        found["ece"] = calibration_error(np.array(self._probabilities), right)
        return found | ({"top1_accepted": float(right[accepted].mean())} if accepted.any() else {})

    def sentence(self) -> str:
        """The values in words."""
        values = self.values()
        words = f"{self.samples:,} samples" + (f", {self.bad:,} of them without a prediction" if self.bad else "")
        if self.rejected:
            words += f"; {self.rejected:,} rejected, coverage {values['coverage']:.2%}"
        if "top1" in values:
            low, high = values["top1_low"], values["top1_high"]
            words += f"; top-1 of {values['labelled']:,}: {values['top1']:.2%} (95 % interval {low:.2%} to {high:.2%})"
            words += f", calibration error {values['ece']:.3f}"
            if self.rejected and "top1_accepted" in values:
                words += f", top-1 of those not rejected {values['top1_accepted']:.2%}"
        if "accuracy" in values:
            words += f"; of {values['labelled']:,}: accuracy {values['accuracy']:.2%} under the best matching"
            words += f", NMI {values['nmi']:.3f}, ARI {values['ari']:.3f}"
        return words
