"""What a method adds to the report of a run: figures, tables and numbers of its own phases, and its paper's figures.

A method's folder has them in report.py, as REPORT. It is imported only where a report is made, and without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from moe_dist.plots.drawing import Drawing
from moe_dist.plots.tables import Table

Format = Callable[[float], str]
"""Writes a value of metrics.json as a table shows it."""


class ReportedStep(Protocol):
    """A finished step of a model."""

    @property
    def values(self) -> Mapping[str, Any]:
        """What its StepResult had as values."""

    def array(self, name: str) -> np.ndarray:
        """One of its arrays. Only this one is read."""


class ReportedEvaluation(Protocol):
    """A trained model on the N images of the test split. Letters: C classes (or clusters), E experts."""

    @property
    def labels(self) -> np.ndarray:
        """The true classes [N]."""

    @property
    def log_probs(self) -> np.ndarray:
        """The prediction [N, C]."""

    @property
    def gates(self) -> Mapping[str, np.ndarray]:
        """Weights [N, E] of each gate's experts, by the gate's name; "" where there is one gate."""

    @property
    def pictures(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """Arrays that figures are drawn from, by the figure's name."""


class ReportedModel(Protocol):
    """A model of a run, of the method that the report part belongs to."""

    @property
    def name(self) -> str:
        """Its name in the job."""

    @property
    def title(self) -> str:
        """Its name in tables and figures."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """The method's settings as plain values, every default written out."""

    @property
    def log(self) -> Sequence[Mapping[str, Any]]:
        """The records of its training's metrics.jsonl, those of earlier trainings (another network's) first."""

    @property
    def steps(self) -> Mapping[str, ReportedStep]:
        """Its finished steps by name, in the order in which they were finished."""

    @property
    def evaluation(self) -> ReportedEvaluation | None:
        """Its evaluation; None before there is one."""


class ReportedRun(Protocol):
    """The run that a report is of."""

    @property
    def record(self) -> Mapping[str, Any]:
        """run.json: among it `dataset`, `classes` (their names) and `counts` of train, val and test."""

    @property
    def test_split(self) -> str:
        """The data of a figure of test images, and how many there are, in words."""

    @property
    def class_counts(self) -> np.ndarray | None:
        """The training images [C] of every class; None in an old run that did not record them."""


class MethodReport:
    """A method's part of the report. Override what the method has; by default it shows nothing."""

    papers: ClassVar[Path | None] = None
    """A YAML file of tables as the method's paper prints them, by keys that begin with the method's name
    (methods/dfcp/paper.yaml is one); a job's `paper_table` names one of them."""
    counterparts: ClassVar[Mapping[str, str]] = {}
    """Shared figure -> a sentence for its caption on which figure of the paper it is the counterpart of."""
    parameters: ClassVar[Mapping[str, str]] = {}
    """Hyper-parameter of an expert -> its heading in tables of a search, in the table's order."""
    rows: ClassVar[Sequence[tuple[str, str, Format]]] = ()
    """Rows of the results table: name of one of `numbers`, heading, format."""

    def numbers(self, run: ReportedRun, model: ReportedModel) -> Iterator[tuple[str, float]]:
        """Numbers for metrics.json by name: shares in [0, 1], times with their unit in the name."""
        yield from ()

    def tables(self, run: ReportedRun, models: Sequence[ReportedModel]) -> Iterator[Table]:
        """Tables below the shared ones. models: all of the run's that have this report, in the job's order."""
        yield from ()

    def drawings(self, run: ReportedRun, models: Sequence[ReportedModel]) -> Iterator[Drawing]:
        """Figures beside the shared ones, each drawn when it is asked for. models: as in `tables`."""
        yield from ()
