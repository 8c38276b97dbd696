"""Tables: what stands in which cell, what is marked as the paper's, and the three ways of writing them."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from synthetic_run import write_run

from moe_dist.errors import UserError
from moe_dist.plots.tables import Column, Row, Table, to_html, to_markdown, to_rich
from moe_dist.report.build import flat_metrics
from moe_dist.report.run import RunDirectory
from moe_dist.report.seeds import seeds_table
from moe_dist.report.tables import class_table, milliseconds, results_table, steps_table

NAMES = [str(digit) for digit in range(10)]


def cells(table: Table, heading: str) -> tuple[str, ...]:
    return next(row.cells for row in table.rows if row.heading == heading)


def test_our_figures_stand_beside_the_papers(tmp_path: Path) -> None:
    run = RunDirectory(write_run(tmp_path / "run", NAMES))
    metrics = flat_metrics(run) | {"dfcp/map": 0.98765, "traditional_moe/map": 0.5, "dense/map": 1.0}
    table = results_table(run, metrics)
    assert [column.paper for column in table.columns] == [False, True] * 3
    expected = ("98.77 %", "99.95 %", "50.00 %", "92.67 %", "100.00 %", "96.68 %")
    assert cells(table, "Mean average precision (mAP)") == expected
    assert cells(table, "Training, summed over experts") == (
        "2.2 min",
        "~126 h",
        "2.2 min",
        "~129 h",
        "41.7 s",
        "~3.48 h",
    )
    assert cells(table, "Labels used") == ("10 % trusted", "–", "all", "–", "all", "–")
    assert cells(table, "Time per image, median, k = 1") == ("0.400 ms", "–", "0.400 ms", "–", "–", "–")


def test_the_epoch_chosen_on_validation_stands_beside_the_last(tmp_path: Path) -> None:
    run, metrics = both(write_run(tmp_path / "run", NAMES))
    table = results_table(run, metrics)
    headings = [row.heading for row in table.rows]
    assert headings[headings.index("Top-1 accuracy") + 2] == "Top-1, chosen on validation"
    images = len(run.models["dense"].evaluation.labels)  # type: ignore[union-attr]
    chosen = f"{100 * (images - -(-images // 5)) / images:.2f} %"
    assert cells(table, "Top-1, chosen on validation") == (chosen, "–") * 3
    title = run.models["dense"].title
    assert any(f"{title}: 17" in note and "All other figures are the last epoch's" in note for note in table.notes)


def test_notes_name_the_source_and_the_other_dataset(tmp_path: Path) -> None:
    notes = " ".join(results_table(*both(write_run(tmp_path / "a", NAMES))).notes)
    assert "As printed in Badjie" in notes and "not measured here" in notes
    assert "This run used digits, the paper gtsrb" in notes
    same = " ".join(results_table(*both(write_run(tmp_path / "b", NAMES, dataset="gtsrb"))).notes)
    assert "As printed in Badjie" in same and "This run used" not in same


def both(path: Path) -> tuple[RunDirectory, dict[str, float]]:
    run = RunDirectory(path)
    return run, flat_metrics(run)


def test_without_a_paper_there_is_one_column_a_model_and_no_mark(tmp_path: Path) -> None:
    table = results_table(*both(write_run(tmp_path / "run", NAMES, paper_table=None)))
    assert [column.group for column in table.columns] == ["dfcp", "traditional moe", "dense"]
    assert "†" not in to_markdown(table) + to_html(table)


def test_a_model_not_evaluated_has_dashes_and_rows_nobody_has_are_left_out(tmp_path: Path) -> None:
    table = results_table(*both(write_run(tmp_path / "run", NAMES, evaluated=["dense"])))
    assert cells(table, "Top-1 accuracy")[:4] == ("–",) * 4
    assert cells(table, "Top-1 accuracy")[4] != "–"
    assert "Top-1, k = 1" not in [row.heading for row in table.rows]


def test_class_and_step_tables(tmp_path: Path) -> None:
    run = RunDirectory(write_run(tmp_path / "run", NAMES))
    table = class_table(run)
    assert [row.heading for row in table.rows] == NAMES
    assert cells(table, "4")[0] == "36"
    steps = [row.cells[0] for row in steps_table(run).rows]
    assert steps[:5] == ["features", "second stage", "pseudo labels", "training: alone", "training: joint"]
    assert "outliers 17" in steps_table(run).rows[2].cells[2]


def test_mean_over_seeds(tmp_path: Path) -> None:
    runs = [both(write_run(tmp_path / str(seed), NAMES, seed=seed)) for seed in (1, 2, 3)]
    runs = [(run, metrics | {"dense/top1": value}) for (run, metrics), value in zip(runs, (0.739, 0.740, 0.741))]
    # t = 4.3027 with two degrees of freedom: 4.3027 * 0.001 / sqrt(3) = 0.00248.
    assert cells(seeds_table(runs), "Top-1 accuracy")[2] == "74.00 % (73.75 % to 74.25 %)"


def test_gains_over_seeds_are_of_pairs(tmp_path: Path) -> None:
    runs = [both(write_run(tmp_path / str(seed), NAMES, seed=seed, methods=("dfcp", "dense"))) for seed in (1, 2, 3)]
    found = ((0.72, 0.70), (0.83, 0.80), (0.64, 0.60))
    runs = [(run, metrics | {"dfcp/top1": a, "dense/top1": b}) for (run, metrics), (a, b) in zip(runs, found)]
    # Gains 2, 3 and 4 points: 4.3027 * 1 / sqrt(3) = 2.484, however much the seeds themselves differ.
    assert seeds_table(runs).notes[1:] == (
        "Top-1 of DFCP-MoE minus Dense, seed by seed: +3.00 points (+0.52 to +5.48).",
    )
    del runs[0][1]["dense/top1"]
    assert len(seeds_table(runs).notes) == 1


@pytest.mark.parametrize("seeds", [(1,), (1, 1)])
def test_a_table_over_seeds_needs_different_seeds(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    runs = [both(write_run(tmp_path / str(n), NAMES, seed=seed)) for n, seed in enumerate(seeds)]
    with pytest.raises(UserError, match="two or more runs of one job, each with its own seed"):
        seeds_table(runs)


HOSTILE = "<b>|`[red]x[/red]&\n"


def test_hostile_text_stays_text_in_every_form() -> None:
    columns = (Column(HOSTILE, HOSTILE), Column(HOSTILE, HOSTILE, paper=True))
    table = Table(HOSTILE, columns, (Row(HOSTILE, (HOSTILE, HOSTILE)),), (HOSTILE,))
    html = to_html(table)
    assert "<b>" not in html and "&lt;b&gt;|`[red]x[/red]&amp;" in html
    body = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    assert [line.replace("\\|", "").count("|") for line in body] == [4, 4, 4]
    assert all("<b>" not in line for line in body)
    console = Console(width=200, file=StringIO())
    console.print(to_rich(table))
    # Title, group, name, heading, our cell, the paper's cell below it, note.
    assert console.file.getvalue().count("<b>|`[red]x[/red]&") == 7


def test_the_terminals_table_fits_into_80_columns_uncut(tmp_path: Path) -> None:
    table = results_table(*both(write_run(tmp_path / "run", NAMES)))
    console = Console(width=80, file=StringIO())
    console.print(to_rich(table))
    text = console.file.getvalue()
    assert all(cell in text for row in table.rows for cell in (row.heading, *row.cells))
    assert "…" not in text


def test_the_papers_columns_are_marked_in_every_form(tmp_path: Path) -> None:
    table = results_table(*both(write_run(tmp_path / "run", NAMES)))
    assert to_html(table).count('<th scope="col" class="paper">paper †</th>') == 3
    assert to_markdown(table).splitlines()[2].count("paper †") == 3
    rich = to_rich(table)
    assert [str(cell).strip() for cell in rich.columns[0].cells].count("† paper") == 4
    assert [row.style for row in rich.rows[:3]] == [None, "dim italic", None]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01234, "0.0123 ms"),
        (0.9, "0.900 ms"),
        (51.27, "51.3 ms"),
        (1234.5, "1234 ms"),
        (0.0, "0.00 ms"),
        (-0.284, "-0.284 ms"),
    ],
)
def test_milliseconds_have_three_figures(value: float, text: str) -> None:
    assert milliseconds(value) == text


def test_models_of_one_method_stand_beside_figures_of_their_own(tmp_path: Path) -> None:
    """As in the ablation: one method, and names of the paper's columns; another name goes by its method."""
    path = write_run(tmp_path / "run", NAMES, methods=("dense",), evaluated=(), paper_table="icl/table4")
    methods = {model: {"name": "icl"} for model in ("single", "moe", "mine")}
    job = yaml.safe_load((path / "job.yaml").read_text()) | {"methods": methods}
    (path / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False))
    table = results_table(RunDirectory(path), {f"{model}/top1": 0.5 for model in methods})
    assert [column.group for column in table.columns] == ["Single expert"] * 2 + ["MoE"] * 2 + ["mine"] * 2
    assert cells(table, "Top-1 accuracy") == ("50.00 %", "50.34 %", "50.00 %", "54.42 %", "50.00 %", "57.59 %")


def test_seeds_of_different_settings_are_refused_but_not_of_other_places(tmp_path: Path) -> None:
    runs = [both(write_run(tmp_path / str(seed), NAMES, seed=seed)) for seed in (1, 2)]
    runs[1][0].job["data"] |= {"source": "elsewhere"}
    assert len(seeds_table(runs).rows) > 1
    runs[1][0].job["methods"]["dense"] = {"name": "dense", "epochs": 3}
    with pytest.raises(UserError, match="their jobs differ in methods, not in the seed alone"):
        seeds_table(runs)
