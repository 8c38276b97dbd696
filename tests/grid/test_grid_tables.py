"""The tables of hand-made records: means, intervals, differences, papers' figures, and what is missing."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import pytest
from hand_made import PRINTED, cell, over_seeds, record
from scipy import stats
from small_grids import SPARSE, small_grid

from moe_dist.grid.cells import cells_of
from moe_dist.grid.paper import printed_for
from moe_dist.grid.report import csv_text
from moe_dist.grid.summary import figures_of
from moe_dist.grid.tables import cells_table, heading_and_format, result_tables
from moe_dist.plots.latex import escaped, to_latex
from moe_dist.plots.tables import to_markdown
from moe_dist.report.tables import BOUNDS_NOTE

ONE, TWO = [0.2, 0.4, 0.3], [0.3, 0.6, 0.6]


def at(method: str, seed: int = 0, **more: str) -> dict[str, str]:
    return {"method": method, "data": "plain", **more, "seed": str(seed)}


def test_means_and_paired_differences_over_seeds_are_scipys() -> None:
    figure = figures_of(over_seeds())[("two", "plain")]["top1"]
    expected = stats.ttest_rel(TWO, ONE)
    interval = expected.confidence_interval(0.95)
    own = stats.t.interval(0.95, 2, np.mean(TWO), stats.sem(TWO))
    assert figure.mean == pytest.approx(0.5) and figure.interval == pytest.approx(own)
    assert figure.difference is not None and figure.difference_kind == "paired t"
    assert figure.difference.interval == pytest.approx((interval.low, interval.high))
    assert (figure.difference.mean, figure.difference.p) == pytest.approx((0.2, expected.pvalue))
    assert figures_of(over_seeds())[("one", "plain")]["top1"].difference is None, "the row of comparison itself"


def test_the_table_shows_ours_the_papers_and_the_difference() -> None:
    (table,) = result_tables(over_seeds())
    # 0.3 +- 4.30265 * 0.1 / sqrt(3); differences 0.1, 0.2, 0.3: 0.2 +- 0.24841
    assert to_markdown(table).splitlines()[2:6] == [
        "| method | Top-1 accuracy, this grid | Top-1 accuracy, paper † | Top-1 accuracy, minus one | time a cell |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| one | 30.00 % (5.16 % to 54.84 %) | – | – | 30.0 s |",
        "| Two_fold | 50.00 % (6.97 % to 93.03 %) | 57.6 % (not comparable) | +20.00 (-4.84 to +44.84) | 30.0 s |",
    ]
    notes = "\n".join(table.notes)
    assert "† As printed in Them (2020), Table 1; not measured here. Quoted." in notes
    assert "Not comparable (Two_fold): data digits, the paper's cifar100." in notes
    assert "6 of 6 cells are finished, in 3.0 min of training and evaluation." in notes
    assert "Hardware: 2 cores of X (AVX2)." in notes and "Split (sha256): a1b2c3d4e5f6" in notes


def test_a_grid_of_several_tables_has_each_with_its_own_cells_metrics_and_comparison() -> None:
    cells = [cell(at("one"), [0, 1]), cell(at("two"), [0]), cell({**at("three"), "data": "other"}, [0, 1, 2])]
    tables = [
        {"title": "First", "where": {"method": ["one", "two"]}, "metrics": ["top1"], "against": {"method": "two"}},
        {"title": "Second", "where": {"data": ["other"]}, "metrics": ["top1_low"], "against": {}},
    ]
    made = record(cells, tables=tables, against={}, metrics=["top1", "top1_low"])
    made["axes"]["data"] = ["plain", "other"]
    first, second = result_tables(made)
    assert (first.title, [row.heading for row in first.rows]) == ("First", ["one", "Two_fold"])
    assert first.rows[0].cells[1].startswith("+10.00") and len(second.columns) == 2, "the second compares with none"
    assert (second.title, [row.cells[0] for row in second.rows]) == ("Second", ["0.1"])
    assert "2 of 2 cells are finished" in "\n".join(first.notes) and "1 of 1 cells" in "\n".join(second.notes)
    rows = list(csv.DictReader(io.StringIO(csv_text(made))))
    assert [(row["method"], row["metric"]) for row in rows] == [("one", "top1"), ("two", "top1"), ("three", "top1_low")]


def test_one_seed_has_wilsons_interval_and_mcnemars_test() -> None:
    """Two is right alone on images 2 to 8, one alone on 9: p = 18/256, as in the test of mcnemar itself."""
    cells = [cell(at("one"), [0, 1, 9]), cell(at("two"), [0, 1, 2, 3, 4, 5, 6, 7, 8])]
    (table,) = result_tables(record(cells))
    assert table.rows[0].cells == ("30.00 % (10.00 % to 50.00 %)", "–", "30.0 s")
    assert table.rows[1].cells == ("90.00 % (70.00 % to 110.00 %)", "+60.00 (p = 0.07)", "30.0 s")
    assert any("McNemar's exact test" in note for note in table.notes)
    other = [cells[0], cells[1] | {"test_split": "another"}]
    figure = figures_of(record(other))[("two", "plain")]["top1"]
    assert (figure.difference_kind, figure.difference) == ("", (pytest.approx(0.6), None, None)), "other test images"


def test_what_is_missing_is_told() -> None:
    failed = {"status": "failed", "reason": "term `combined` is nan at step 3"}
    cells = [cell(at("one", seed), [seed]) for seed in range(2)]
    cells += [cell(at("two", 0), [1, 2]), cell(at("two", 1), None, **failed)]
    cells += [cell(at("three", seed), None) for seed in range(2)]
    (table,) = result_tables(record(cells))
    texts = {row.heading: row.cells[0] for row in table.rows}
    assert texts["Two_fold"] == "20.00 % (0.00 % to 40.00 %), 1 of 2 seeds failed"
    assert texts["three"] == "not run" and table.rows[2].cells[-1] == "–"
    assert "Failed (two, plain, seed 1): term `combined` is nan at step 3." in table.notes
    assert cells_table(record(cells)).rows[3].cells[:2] == ("failed", "–")


def test_cells_that_were_left_out_are_dashes_and_several_metrics_are_several_tables() -> None:
    cells = [cell(at("one"), [0]), cell(at("two"), [1]), cell(at("one") | {"data": "long_tail"}, [2])]
    first, second = result_tables(record(cells, metrics=["top1", "unknown_number"]))
    assert (first.title, second.title) == ("A made grid: Top-1 accuracy", "A made grid: unknown_number")
    assert [column.group for column in first.columns] == ["plain", "plain", "long tail"]
    assert first.rows[1].cells[-1] == "–" and first.rows[0].cells[-1].startswith("10.00 %")
    assert {cell for row in second.rows for cell in row.cells} == {"–", "30.0 s"}


def test_changes_along_the_columns_and_compared_along_one_axis() -> None:
    """Each cell against the one of the same rate without the change: t_ad is compared, the rate keeps its own."""
    places = [{"t_ad": ad, "rate": rate} for ad in ("short", "long") for rate in ("low", "high")]
    cells = [cell(at("one", **place), range(number + 1)) for number, place in enumerate(places)]
    made = record(cells, rows=["method", "t_ad"], columns=["data", "rate"], against={"t_ad": "short"})
    (table,) = result_tables(made)
    assert (table.corner, [row.heading for row in table.rows]) == ("t_ad", ["short", "long"])
    assert [(column.group, column.name) for column in table.columns] == [
        ("low", "mean"),
        ("low", "minus short"),
        ("high", "mean"),
        ("high", "minus short"),
        ("", "time a cell"),
    ]
    assert [cell.split(" ")[0] for cell in table.rows[1].cells] == ["30.00", "+20.00", "40.00", "+20.00", "30.0"]


def test_the_csv_is_read_back_with_the_numbers_as_they_are() -> None:
    made = over_seeds()
    lines = list(csv.DictReader(io.StringIO(csv_text(made))))
    assert [line["method"] for line in lines] == ["one", "two"]
    figure = figures_of(made)[("two", "plain")]["top1"]
    assert figure.interval and figure.difference and figure.difference.interval
    assert float(lines[1]["mean"]) == figure.mean and float(lines[1]["p"]) == figure.difference.p
    assert (float(lines[1]["low"]), float(lines[1]["high"])) == figure.interval
    both = (float(lines[1]["difference_low"]), float(lines[1]["difference_high"]))
    assert both == figure.difference.interval
    assert (lines[1]["paper"], lines[1]["paper_not_comparable"]) == ("57.6 %", "data digits, the paper's cifar100")
    assert lines[0]["difference"] == "" and lines[0]["seeds"] == "3"


def latex_cells(text: str) -> list[list[str]]:
    """The rows of the tabular of a LaTeX table, parsed: environments are closed in order, braces match."""
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    bare = re.sub(r"\\[{}]", "", text)
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    align, body = re.search(r"\\begin\{tabular\}\{(\w+)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL).groups()  # type: ignore[union-attr]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    others = [line for line in body.splitlines() if not line.endswith(r"\\")]
    assert all(re.fullmatch(r"(\\(top|mid|bottom)rule|(\\cmidrule\(lr\)\{\d+-\d+\} ?)+)", line) for line in others)
    rows = []
    for line in lines:
        cells = re.split(r"(?<!\\) & ", line.removesuffix(r" \\"))
        spans = [re.fullmatch(r"\\multicolumn\{(\d+)\}\{c\}\{(.*)\}", cell) for cell in cells]
        assert sum(int(span[1]) if span else 1 for span in spans) == len(align)
        assert not re.search(r"(?<!\\)[%#_&~^]", line.replace(" & ", "")), "no character that LaTeX would read"
        rows.append([span[2] if span else cell for span, cell in zip(spans, cells)])
    return rows


def test_the_latex_is_sound_and_holds_the_figures() -> None:
    (table,) = result_tables(over_seeds())
    rows = latex_cells(to_latex(table))
    assert rows[0] == ["", "Top-1 accuracy", ""]
    assert rows[1] == ["method", "this grid", r"paper \dag{}", "minus one", "time a cell"]
    assert rows[3][0] == r"Two\_fold" and rows[3][2] == r"57.6 \% (not comparable)"
    assert rows[3][3] == "+20.00 (-4.84 to +44.84)"
    assert latex_cells(to_latex(cells_table(over_seeds())))[1][0] == "one, plain, seed 0"


def test_no_text_can_break_the_latex() -> None:
    assert escaped(r"100 % of \a_b{c} & [#1] ~ x^2 $ <y>") == (
        r"100 \% of \textbackslash{}a\_b\{c\} \& {[}\#1{]} \textasciitilde{} x\textasciicircum{}2 \$ "
        r"\textless{}y\textgreater{}"
    )


def test_a_papers_figure_is_not_comparable_where_data_or_schedule_differ() -> None:
    paper = [
        {"where": {"method": "narrow"}, "figure": "99 %", "source": "Them", "settings": {"method.epochs": [2, 4]}},
        {"where": {"method": "wide"}, "figure": "98 %", "source": "Them", "settings": {"method.epochs": 4}},
    ]
    data = {"dataset": "digits", "image_size": 8}
    grid = {"data": {"all": {}, "half": {"max_train_images": 100}}, "paper": paper, "seeds": [0]}
    job = small_grid(grid, data=data)
    found = {cell.name: printed_for(job, cell)["top1"]["not_comparable"] for cell in cells_of(job)}
    assert found == {
        "narrow.all.seed0": "",
        "narrow.half.seed0": "only a part of the images",
        "wide.all.seed0": "method.epochs 2, the paper's 4",
        "wide.half.seed0": "only a part of the images; method.epochs 2, the paper's 4",
    }


def test_a_table_of_a_paper_is_found_by_model_then_by_method() -> None:
    methods = {"moe": {"name": "icl", "col": False}, "other": {"name": "icl"}, "sparse": SPARSE}
    job = small_grid({"data": {}, "seeds": [0], "against": {}}, methods=methods, paper_table="icl/table4")
    found = {cell.at["method"]: printed_for(job, cell).get("top1") for cell in cells_of(job)}
    assert found["sparse"] is None
    assert found["moe"] is not None and found["moe"]["text"] == "54.42 %"
    assert found["other"] is not None and found["other"]["text"] == "57.59 %"
    assert "data digits, the paper's cifar100" in found["moe"]["not_comparable"]
    assert "data.imbalance None, the paper's 100" in found["moe"]["not_comparable"]
    assert PRINTED.keys() == found["moe"].keys()


def test_accuracy_and_time_of_few_experts_are_written_as_those_of_all() -> None:
    written = {name: heading_and_format(over_seeds(), name) for name in ("top1_k2", "latency_median_ms_k1", "own_k2")}
    assert [heading for heading, _ in written.values()] == [
        "Top-1 accuracy, k = 2",
        "Time per image, median, k = 1",
        "own_k2",
    ]
    assert [write(0.25) for _, write in written.values()] == ["25.00 %", "0.250 ms", "0.25"]


def test_of_clusterings_the_worst_seed_is_told() -> None:
    scores = {"one": (0.9, 0.5, 0.7), "two": (0.8, 0.8, 0.8)}
    cells = [
        cell(at(method, seed), [], metrics={"accuracy": of_seed[seed], "purity": 0.5})
        for method, of_seed in scores.items()
        for seed in range(3)
    ]
    (table,) = result_tables(record(cells, metrics=["accuracy", "purity"]))
    lines = to_markdown(table).splitlines()
    assert "70.00 % (20.32 % to 100.00 %), worst 50.00 %" in lines[4]
    assert BOUNDS_NOTE in table.notes
    assert "Worst: the lowest of the seeds." in table.notes and "worst" not in lines[4].split("|")[4]
