"""Papers' numbers as data: every printed table against the text of the paper, cell by cell, and what reports take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
import yaml

from moe_dist.errors import UserError
from moe_dist.methods.registry import method_report
from moe_dist.metrics.classification import mean_interval
from moe_dist.report.paper import paper_table, printed_tables

PAPERS = Path(__file__).parents[3] / "shared" / "papers"
TEXTS = {"dfcp": "dfcp_moe.txt", "icl": "icl.txt", "edcwrn": "edcwrn.txt", "gmm_moe": "gmm_moe.txt"}
TABLES = [(method, name) for method in TEXTS for name in printed_tables(method)]


@pytest.fixture(name="text")
def text_of(request: pytest.FixtureRequest) -> list[str]:
    """The lines of the paper's text without marks of type and spaces."""
    path = PAPERS / TEXTS[request.node.callspec.params["method"]]
    if not path.is_file():
        pytest.skip("the papers' texts are not here")
    return [bare(line) for line in path.read_text(encoding="utf-8").splitlines()]


def bare(text: str) -> str:
    """A text without marks of type, references and spaces."""
    text = re.sub(r"<[^>]+>|\[\*?[A-Z][^\]]*\]", "", text).replace("\\sim", "~")
    return re.sub(r"[\s$*]", "", text)


def lines_of(method: str, name: str) -> Iterator[tuple[str, str]]:
    """The name and the cells, as one bare text, of every line of a printed table."""
    for row, measures in printed_tables(method)[name].rows.items():
        for cells in measures.values():
            yield bare(row), bare("".join(cells))


def test_every_table_of_the_papers_is_there() -> None:
    found = {method: [name for m, name in TABLES if m == method] for method in TEXTS}
    counts = {"dfcp": 3, "icl": 4, "edcwrn": 8, "gmm_moe": 4}
    assert found == {method: [f"table{n + 1}" for n in range(count)] for method, count in counts.items()}
    for method, name in TABLES:
        table = printed_tables(method)[name]
        for measures in table.rows.values():
            assert all(len(cells) == len(table.columns) for cells in measures.values()), (method, name)


def test_a_title_names_no_setting_that_a_job_may_change() -> None:
    """A row of a grid is headed with it, whatever network the grid's model has and however many experts."""
    printed = [table for method, name in TABLES if "Backbone" in (table := printed_tables(method)[name]).columns]
    networks = {row[""][table.columns.index("Backbone")] for table in printed for row in table.rows.values()}
    papers = [report.papers for report in map(method_report, TEXTS) if report and report.papers]
    tables = [about for paper in papers for about in yaml.safe_load(paper.read_text())["tables"].values()]
    titles = {item for about in tables for item in about["titles"].items()}
    assert networks and not [title for _, title in titles if title in networks]
    counted = [(column, re.search(r"(\d+) experts", title)) for column, title in titles]
    assert all(found[1] in column for column, found in counted if found)


@pytest.mark.data
@pytest.mark.parametrize(("method", "name"), TABLES)
def test_a_table_is_as_the_papers_text_prints_it(method: str, name: str, text: list[str]) -> None:
    """Each line is found, in order; what stands between the first and the last of them has no figures of its own."""
    assert bare(printed_tables(method)[name].caption) in "".join(text)
    wanted = list(lines_of(method, name))
    begins = [number for number, line in enumerate(text) if is_line(line, *wanted[0])]
    matched = next(found for begin in begins if (found := matched_from(text[begin:], wanted)))
    between = [line for number, line in enumerate(text[begins[0] :]) if number < matched[-1] and number not in matched]
    assert [line for line in between if re.search(r"\d\.\d", line)] == []


def matched_from(text: list[str], wanted: list[tuple[str, str]]) -> list[int]:
    """The numbers of the lines of a text that are the wanted ones, in order; none where one is missing."""
    found: list[int] = []
    for row, cells in wanted:
        after = found[-1] + 1 if found else 0
        number = next((n for n in range(after, len(text)) if is_line(text[n], row, cells)), None)
        if number is None:
            return []
        found.append(number)
    return found


def is_line(text: str, row: str, cells: str) -> bool:
    """Whether a bare line ends with the cells, after a part of the row's name, or after check marks in its place."""
    name = text.removesuffix(cells)
    return text.endswith(cells) and (name in row or row in name or set(name) <= set("✓✗"))


@pytest.mark.data
@pytest.mark.parametrize("method", TEXTS)
def test_what_a_papers_text_says_is_in_it(method: str, text: list[str]) -> None:
    report = method_report(method)
    assert report and report.papers
    tables = yaml.safe_load(report.papers.read_text(encoding="utf-8"))["tables"]
    said = [
        bare(figure)
        for about in tables.values()
        for row in about["rows"].values()
        for figure in row.get("said", {}).values()
    ]
    assert [figure for figure in said if not any(figure in line for line in text)] == []


@pytest.mark.parametrize("method", TEXTS)
def test_reports_take_figures_from_lines_that_are_there(method: str) -> None:
    """A row that no printed table of its key has would be left out in silence."""
    report = method_report(method)
    assert report and report.papers
    content = yaml.safe_load(report.papers.read_text(encoding="utf-8"))
    printed = printed_tables(method)
    for key, about in content["tables"].items():
        rows = [row for row in about["rows"].values() if "at" in row]
        used = {row["at"][0] for row in rows}
        names = {name for table in used for name in (*printed[table].rows, *printed[table].columns)}
        lines = {*about.get("of", {}).values()} | {
            n for row in about["rows"].values() for n in row.get("by", {}).values()
        }
        assert lines <= names, key
        places = [row["at"][1] for row in about["rows"].values() if "at" in row and row["at"][1] is not None]
        assert set(places) <= names, key


def test_a_key_for_several_columns_is_asked_for_one() -> None:
    noisy = paper_table("edcwrn/table5_mnist_test", "Speckle 0.1").rows
    assert noisy["accuracy"] == {"edcwrn": "98.1 %", "idec": "84.1 %", "dec": "83.1 %"}
    assert noisy["nmi"]["edcwrn"] == "0.965"
    with pytest.raises(UserError, match=r"edcwrn/table5_usps: column = '': choose of Gaussian 0.01, "):
        paper_table("edcwrn/table5_usps")
    with pytest.raises(UserError, match=r"dfcp/table3: column = 'Speckle 0.1': leave it out"):
        paper_table("dfcp/table3", "Speckle 0.1")


def test_where_papers_contradict_themselves() -> None:
    """Printed as they are, with a note; what the notes say is computed here."""
    gmm, edcwrn = printed_tables("gmm_moe"), printed_tables("edcwrn")
    runs = [float(gmm["table3"].cell("GMM-MoE", f"Run {number}")) for number in (1, 2, 3)]
    mean, interval = mean_interval(runs)
    assert gmm["table3"].cell("GMM-MoE", "95% CI") == "74.12 ± 0.25"
    assert f"{mean:.2f} {interval.high - mean:.2f}" == "74.12 0.24" and "0.24" in gmm["table3"].notes[0]
    for measure, printed, computed in (("ACC", "88.70", "89.58"), ("NMI", "88.27", "89.03")):
        images = edcwrn["table6"].rows["EDCWRN"][measure]
        assert edcwrn["table7"].cell(measure, "EDCWRN") == printed
        assert (sum(map(Decimal, images)) / 4).quantize(Decimal("0.01"), ROUND_HALF_UP) == Decimal(computed)
        assert computed in edcwrn["table7"].notes[0] and printed in edcwrn["table7"].notes[0]
    assert edcwrn["table3"].cell("✓ ✓ proposed", "USPS", "ACC") == "98.21"
    assert edcwrn["table6"].cell("EDCWRN", "USPS", "ACC") == "98.3"
    assert edcwrn["table5"].cell("USPS EDCWRN", "Gaussian 0.01", "ACC") == "98.3"
    assert edcwrn["table6"].cell("PSSC [53]", "Mnist-Test", "ACC") == ""
