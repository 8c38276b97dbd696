"""Settings of a grid: which methods, data, changes and seeds are run, and how the table of results is laid out."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from moe_dist.settings.data import DataConfig
from moe_dist.settings.schema import Strict

METHOD, DATA, SEED = "method", "data", "seed"
"""The axes that every grid has; those in `changes` lie between data and seed."""

AxisName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
"""The name of an axis, or of an entry on one; names of entries make up the names of cells and of their folders."""


def _texts(value: Any) -> Any:
    """One value or several as a list of texts."""
    return [str(item) for item in (value if isinstance(value, list | tuple) else [value])]


Names = Annotated[tuple[str, ...], BeforeValidator(_texts)]
"""One name or a list of them."""
Place = dict[AxisName, Names]
"""Some cells of a grid: by axis, the names that they have there. An axis that is left out may have any name."""
DataChanges = Annotated[DataConfig, PlainSerializer(lambda data: data.model_dump(mode="json", exclude_unset=True))]
"""Fields of `data` that differ from the job's own."""


class PaperFigure(Strict):
    """What a paper prints for the cells at `where`: its table by key, or a figure."""

    where: Place = Field(default={})
    metrics: Names = ()
    """Only these metrics. Default: all of a table, the grid's first one of a figure."""
    table: str | None = None
    """Key of a table in methods/*/paper.yaml; a column of it belongs to the model of its name, else of its method."""
    column: str = ""
    """The column of the printed table, for a key that stands for any of them (`edcwrn/table5_mnist`)."""
    figure: str | None = None
    """A figure as printed."""
    source: str = ""
    """Where the figure is printed."""
    settings: dict[str, Any] = Field(default={})
    """What the paper measured with, by field of a cell's job (`method.epochs: 200`; a list holds all that agree). A
    cell with another value is marked as not comparable."""
    not_comparable: str = ""
    """Why the figure does not compare with any of these cells."""

    @model_validator(mode="after")
    def _one_of_both(self) -> PaperFigure:
        if (self.table is None) == (self.figure is None):
            raise ValueError("needs either `table` (a key of methods/*/paper.yaml) or `figure` (as printed)")
        if self.figure is not None and not self.source:
            raise ValueError("a `figure` needs its `source`")
        return self


class TableConfig(Strict):
    """One of several tables of a grid."""

    title: str
    where: Place
    """Its cells."""
    metrics: Names
    against: dict[AxisName, str] = Field(default={})
    """As the grid's."""


class GridConfig(Strict):
    """The cells of a grid: every method of the job x data x changes x seeds, except those left out.

    What does not vary is said once, in the job itself.
    """

    data: dict[AxisName, DataChanges] = Field(default={})
    """Name -> fields of `data` that differ from the job's. Default: the job's data alone, named after its dataset."""
    changes: dict[AxisName, dict[AxisName, dict[str, Any]]] = Field(default={})
    """Axis -> name -> fields of a cell's job and their values (`method.t_ad: 30`); {} changes nothing."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = ()
    """Default: the job's seed."""
    leave_out: tuple[Place, ...] = ()
    """Cells that make no sense: `{method: ride, data: [balanced]}`."""
    rows: Names = ()
    columns: Names = ()
    """The axes, seeds excepted, along the table's rows and columns. Default: data along the columns, all others along
    the rows; where one of the two is given, the other takes the rest."""
    metrics: Names = ("top1",)
    """Metrics of metrics.json, without their model."""
    against: dict[AxisName, str] = Field(default={})
    """The row that all others are compared with, by its names (`{method: cross_entropy}`); an axis that is left out
    keeps a cell's own name. Default: no comparison."""
    tables: tuple[TableConfig, ...] = ()
    """Several tables, each of some cells with metrics of its own; cells that lie in none are left out. Default: one
    table of all cells, with `metrics` and `against`."""
    paper: tuple[PaperFigure, ...] = ()

    @model_validator(mode="after")
    def _axes_agree(self) -> GridConfig:
        if self.tables and self.against:
            raise ValueError("against: each of `tables` has its own; leave it out of the grid")
        if taken := {METHOD, DATA, SEED} & self.changes.keys():
            raise ValueError(f"changes.{taken.pop()}: is an axis of every grid; give this one another name")
        if empty := [name for name, entries in self.changes.items() if not entries]:
            raise ValueError(f"changes.{empty[0]}: needs one named change or more")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {', '.join(map(str, self.seeds))}: one occurs twice")
        axes = [METHOD, DATA, *self.changes]
        for field, names in (("rows", self.rows), ("columns", self.columns)):
            if unknown := [name for name in names if name not in axes]:
                raise ValueError(f"{field}: no axis is called {unknown[0]!r}; choose of {', '.join(axes)}")
        if both := set(self.rows) & set(self.columns):
            raise ValueError(f"{both.pop()}: is in both rows and columns")
        if self.rows and self.columns and (missing := set(axes) - set(self.rows) - set(self.columns)):
            raise ValueError(f"{', '.join(sorted(missing))}: is in neither rows nor columns")
        return self

    @property
    def shown_metrics(self) -> tuple[str, ...]:
        """The metrics of all tables."""
        return tuple(dict.fromkeys(metric for table in self.tables or (self,) for metric in table.metrics))

    @property
    def table_axes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The axes along the rows and those along the columns."""
        axes = (METHOD, DATA, *self.changes)
        if self.rows:
            return self.rows, self.columns or tuple(axis for axis in axes if axis not in self.rows)
        columns = self.columns or (DATA,)
        return tuple(axis for axis in axes if axis not in columns), columns
