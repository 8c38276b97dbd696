"""The tables of a grid, from its record: the figures, and the cells one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from moe_dist.grid.cells import name_of
from moe_dist.grid.record import Record, parts_of
from moe_dist.grid.state import CELLS
from moe_dist.grid.summary import MCNEMAR, PAIRED_T, T_INTERVAL, WILSON, Figure, combinations, figures_of
from moe_dist.methods.registry import method_report
from moe_dist.metrics.classification import Interval
from moe_dist.places import FINISHED
from moe_dist.plots.tables import ABSENT, PAPER_MARK, Column, Row, Table, percent
from moe_dist.report.tables import BOUNDS_NOTE, GROUPS_NOTE, SECTIONS, within_bounds
from moe_dist.settings.grid import METHOD, SEED
from moe_dist.terminal import duration

DIGITS = 12
"""So many digits of a digest are shown."""
NOT_COMPARABLE = "not comparable"
CLUSTERING = ("accuracy", "nmi", "ari")

Format = Callable[[float], str]


def result_tables(record: Record) -> list[Table]:
    """The grid's tables: each of all its metrics where the columns hold one place, else one of each metric."""
    return [table for part in parts_of(record) for table in _tables_of(part)]


def _tables_of(record: Record) -> list[Table]:
    figures = figures_of(record)
    columns, metrics = combinations(record, record["columns"]), record["metrics"]
    together = [metrics] if len(columns) == 1 else [[metric] for metric in metrics]
    return [_table(record, figures, shown, columns, last=shown == together[-1]) for shown in together]


def _table(
    record: Record,
    figures: Mapping[tuple[str, ...], Mapping[str, Figure]],
    metrics: Sequence[str],
    columns: Sequence[tuple[str, ...]],
    last: bool,
) -> Table:
    """One table of these metrics. last: it carries the facts of the whole grid below it."""
    rows = combinations(record, record["rows"])
    places = [(names, metric) for names in columns for metric in metrics]
    parts = [_Place(record, figures, rows, names, metric, alone=len(columns) == 1) for names, metric in places]
    shown = [figure for part in parts for figure in part.figures if figure]
    of_one = "" if len(columns) == 1 else f": {heading_and_format(record, metrics[0])[0]}"
    times = [_time_a_cell(record, names) for names in rows] if last else []
    return Table(
        title=record["title"] + of_one,
        columns=(
            *(column for part in parts for column in part.columns()),
            *([Column("", "time a cell")] if last else []),
        ),
        rows=tuple(
            Row(
                _names(record, record["rows"], names),
                (*(cell for part in parts for cell in part.cells(number)), *times[number : number + 1]),
            )
            for number, names in enumerate(rows)
        ),
        notes=(*_notes(record, shown), *(_facts(record) if last else ())),
        corner=", ".join(_shown_axes(record, record["rows"])) or METHOD,
        sorts=True,
    )


def _time_a_cell(record: Record, names: tuple[str, ...]) -> str:
    """The mean time of the finished cells of a row, in words; what another cell has made for them counts too."""
    cells = [cell for cell in record["cells"] if tuple(cell["at"][axis] for axis in record["rows"]) == names]
    seconds = [cell["seconds"] + cell["seconds_taken_over"] for cell in cells if "seconds" in cell]
    return duration(sum(seconds) / len(seconds)) if seconds else ABSENT


class _Place:
    """What one metric at one place of the columns takes in a table: our figures, a paper's, and the differences."""

    def __init__(
        self,
        record: Record,
        figures: Mapping[tuple[str, ...], Mapping[str, Figure]],
        rows: Sequence[tuple[str, ...]],
        names: tuple[str, ...],
        metric: str,
        alone: bool,
    ) -> None:
        heading, self._write = heading_and_format(record, metric)
        self._heading = heading if alone else _names(record, record["columns"], names)
        self.figures = [figures.get(_key(record, row, names), {}).get(metric) for row in rows]
        self._papers = any(figure and figure.printed for figure in self.figures)
        self._compared = any(figure and figure.difference for figure in self.figures)
        self._against = ", ".join(record["headings"].get(name, name) for name in record["against"].values())

    def columns(self) -> Iterator[Column]:
        """Ours, then a paper's and the differences, where there are some."""
        yield Column(self._heading, "this grid" if self._papers else "mean" if self._compared else "")
        if self._papers:
            yield Column(self._heading, f"paper {PAPER_MARK}", paper=True)
        if self._compared:
            yield Column(self._heading, f"minus {self._against}")

    def cells(self, row: int) -> Iterator[str]:
        """The texts of a row, in the columns' order."""
        figure = self.figures[row]
        yield _ours(figure, self._write) if figure else ABSENT
        if self._papers:
            printed = figure.printed if figure else None
            mark = f" ({NOT_COMPARABLE})" if printed and printed["not_comparable"] else ""
            yield f"{printed['text']}{mark}" if printed else ABSENT
        if self._compared:
            yield _difference(figure, self._write) if figure else ABSENT


def heading_and_format(record: Record, metric: str) -> tuple[str, Format]:
    """The heading of a metric and how its values are written, as in the report of a run; top1_k2 is top1 at k = 2."""
    methods = {method["name"] for method in record["job"]["methods"].values()}
    own = [row for name in sorted(methods) if (report := method_report(name)) for row in report.rows]
    known = {key: (heading, write) for key, heading, write in [*own, *(row for rows in SECTIONS for row in rows)]}
    if metric in known:
        return known[metric]
    whole, _, k = metric.rpartition("_k")
    if whole in known and k.isdecimal():
        heading, write = known[whole]
        return f"{heading}, k = {k}", write
    return metric, "{:.4g}".format


def _key(record: Record, row: Sequence[str], column: Sequence[str]) -> tuple[str, ...]:
    at = dict(zip(record["rows"], row)) | dict(zip(record["columns"], column))
    return tuple(at[axis] for axis in record["axes"] if axis != SEED)


def _shown_axes(record: Record, axes: Sequence[str]) -> list[str]:
    """Those of the axes that have more than one name."""
    return [axis for axis in axes if len(record["axes"][axis]) > 1]


def _names(record: Record, axes: Sequence[str], names: Sequence[str]) -> str:
    """The heading of a row or column: its names on axes that have several, else the first one."""
    shown = [name for axis, name in zip(axes, names) if axis in _shown_axes(record, axes)] or names[:1]
    return ", ".join(record["headings"].get(name, name.replace("_", " ")) for name in shown)


def written(record: Record, figure: Figure) -> str:
    """A figure as the tables show it."""
    return _ours(figure, heading_and_format(record, figure.metric)[1])


def _ours(figure: Figure, write: Format) -> str:
    """The mean, its interval, and of how many seeds it is where some are missing; or why there is none."""
    if figure.mean is None:
        return figure.status if figure.status != FINISHED else ABSENT
    text = write(figure.mean)
    if interval := _shown_interval(figure, write):
        text += f" ({write(interval.low)} to {write(interval.high)})"
    if _worst_is_told(figure):
        text += f", worst {write(min(figure.values.values()))}"
    missing = len(figure.cells) - len(figure.values)
    return text + (f", {missing} of {len(figure.cells)} seeds {figure.status}" if missing else "")


def _shown_interval(figure: Figure, write: Format) -> Interval | None:
    """The interval of the mean; Student's without what is beyond the metric's bounds."""
    if figure.interval and figure.interval_kind == T_INTERVAL:
        return within_bounds(figure.interval, figure.metric, write)
    return figure.interval


def _worst_is_told(figure: Figure) -> bool:
    """Of clusterings over seeds, one of which may lose a cluster."""
    return figure.metric in CLUSTERING and len(figure.values) > 1


def _difference(figure: Figure, write: Format) -> str:
    """The difference with its interval, or with the p value of McNemar's test."""
    if figure.difference is None:
        return ABSENT
    mean, interval, p = figure.difference
    text = _signed(mean, write)
    if figure.difference_kind == MCNEMAR:
        return f"{text} (p = {p:.2g})"
    return text + (f" ({_signed(interval.low, write)} to {_signed(interval.high, write)})" if interval else "")


def _signed(value: float, write: Format) -> str:
    """A difference with its sign; of shares, in points."""
    if write is percent:
        return f"{100 * value:+.2f}"
    return f"{'-' if value < 0 else '+'}{write(abs(value))}"


def _notes(record: Record, figures: Sequence[Figure]) -> Iterator[str]:
    """How to read the figures: what intervals and differences are, what is a paper's, what is missing."""
    seeds = record["axes"][SEED]
    kinds = {figure.interval_kind for figure in figures} | {figure.difference_kind for figure in figures}
    yield f"Test split; seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}."
    if T_INTERVAL in kinds:
        yield "In brackets behind a mean: its 95 % Student-t interval over seeds."
    if any(
        _shown_interval(figure, heading_and_format(record, figure.metric)[1]) != figure.interval for figure in figures
    ):
        yield BOUNDS_NOTE
    if any(map(_worst_is_told, figures)):
        yield "Worst: the lowest of the seeds."
    if WILSON in kinds:
        yield "In brackets behind one seed's accuracy: Wilson's 95 % interval over test images."
    if PAIRED_T in kinds:
        yield "Minus: the difference seed by seed (of shares in points), with the 95 % interval of Student's paired t."
    if MCNEMAR in kinds:
        yield "Minus: the difference on the same test images in points, with the p value of McNemar's exact test."
    if any(figure.metric in ("top1_many", "top1_medium", "top1_few") for figure in figures):
        yield GROUPS_NOTE
    printed = [figure.printed for figure in figures if figure.printed]
    for source, note in dict.fromkeys((paper["source"], paper["note"]) for paper in printed):
        yield f"{PAPER_MARK} As printed in {source}; not measured here. {note}".strip()
    reasons: dict[str, list[str]] = {}
    for figure in figures:
        if figure.printed and figure.printed["not_comparable"]:
            place = _names(record, [*figure.at], [*figure.at.values()])
            reasons.setdefault(figure.printed["not_comparable"], []).append(place)
    for reason, places in reasons.items():
        yield f"{NOT_COMPARABLE.capitalize()} ({'; '.join(dict.fromkeys(places))}): {reason}."


def _facts(record: Record) -> Iterator[str]:
    """Failures, hours, hardware, code and splits of the grid."""
    cells = record["cells"]
    finished = [cell for cell in cells if cell["status"] == FINISHED]
    failed: dict[str, list[str]] = {}
    for cell in cells:
        if "reason" in cell:
            failed.setdefault(cell["reason"], []).append(_cell_name(cell))
    for reason, names in failed.items():
        yield f"Failed ({'; '.join(names)}): {reason.removesuffix('.')}."
    hours = sum(cell["seconds"] for cell in finished)
    yield f"{len(finished)} of {len(cells)} cells are finished, in {duration(hours)} of training and evaluation."
    for what, field in (("Hardware", "hardware"), ("Code", "code")):
        if found := dict.fromkeys(cell[field] for cell in finished):
            yield f"{what}: {'; '.join(found)}."
    splits: dict[str, list[str]] = {}
    for cell in finished:
        place = f"{cell['at']['data']}, seed {cell['at'][SEED]}"
        splits.setdefault(cell["split"][:DIGITS], []).append(place)
    if splits:
        shown = "; ".join(f"{split} ({', '.join(dict.fromkeys(places))})" for split, places in splits.items())
        yield f"Split (sha256): {shown}."


def _cell_name(cell: Mapping[str, Any]) -> str:
    return ", ".join(f"seed {name}" if axis == SEED else name for axis, name in cell["at"].items())


def cells_table(record: Record) -> Table:
    """Every cell: how it ended, its metrics, its time, split and predictions."""
    known = [heading_and_format(record, metric) for metric in record["metrics"]]
    rows = []
    for cell in record["cells"]:
        metrics = cell.get("metrics", {})
        values = [write(metrics[m]) if m in metrics else ABSENT for m, (_, write) in zip(record["metrics"], known)]
        seconds = duration(cell["seconds"]) if "seconds" in cell else ABSENT
        if cell.get("seconds_taken_over"):
            seconds += f", and {duration(cell['seconds_taken_over'])} shared"
        digests = [cell[name][:DIGITS] if name in cell else ABSENT for name in ("split", "predictions")]
        page = f"{CELLS}/{name_of(cell['at'])}/report.html" if cell["status"] == FINISHED else ""
        rows.append(Row(_cell_name(cell), (cell["status"], *values, seconds, *digests), link=page))
    names = ["status", *(heading for heading, _ in known), "time", "split", "predictions"]
    columns = tuple(Column("", name) for name in names)
    notes = ("Shared: results that another cell of this grid has made, and that count there.",)
    return Table("Cells", columns, tuple(rows), notes, corner="cell", left=True, sorts=True)
