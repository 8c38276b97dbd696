"""Reports in headless Chromium: they render, ask nobody for anything, fit a phone, and sort their tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from synthetic_longtail import write_longtail_run
from synthetic_run import write_run

from moe_dist.report.build import build_report
from tests.browser import CHROMIUM, Browser, browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]
METHODS = {"icl": {"name": "icl"}, "cross_entropy": {"name": "cross_entropy"}}


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module", params=["three models", "long tail"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "run"
    if request.param == "long tail":
        return build_report(write_longtail_run(path, METHODS, (200, 120, 60, 30, 10, 5)))
    names = [f"a class of a rather long name {number}" for number in range(12)]
    return build_report(write_run(path, names, title="A_title_that_cannot_be_broken_" * 4))


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_renders_in_silence_and_nothing_sticks_out(page: Path, tab: Browser, width: int, dark: bool) -> None:
    tab.asked.clear()
    tab.open(page, width=width, dark=dark)
    assert [address for address in tab.asked if not address.startswith("data:")] == [page.absolute().as_uri()]
    assert tab.complaints == []
    assert tab.value("document.documentElement.scrollWidth <= window.innerWidth")
    assert tab.value(
        "[...document.querySelectorAll('figure svg')].every((svg) => svg.getBoundingClientRect().height > 90)"
    )
    background = tab.value("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(21, 24, 28)" if dark else "rgb(251, 251, 250)")


def test_a_figure_is_dark_on_a_dark_page(page: Path, tab: Browser) -> None:
    letters = "getComputedStyle(document.querySelector('.drawing g[style*=\"--ink\"]')).fill"
    found = []
    for dark in (False, True):
        tab.open(page, dark=dark)
        found.append(tab.value(letters))
    assert found == ["rgb(34, 39, 46)", "rgb(227, 230, 234)"]


def test_the_table_of_classes_sorts_by_a_click_and_back(page: Path, tab: Browser) -> None:
    tab.open(page)
    tab.value("window.table = document.querySelector('#classes details table.sorts')")
    column = "[...table.tBodies[0].rows].map((row) => row.cells[2].textContent).filter((cell) => cell !== '–')"
    click = "table.tHead.querySelectorAll('th[scope=col] button')[1].click()"
    tab.value(click)
    rising = [float(cell) for cell in tab.value(column)]
    tab.value(click)
    falling = [float(cell) for cell in tab.value(column)]
    assert rising == sorted(rising) == falling[::-1] and len(set(rising)) > 1


def test_paper_is_white_and_no_figure_is_cut(page: Path, tab: Browser, tmp_path: Path) -> None:
    tab.open(page, dark=True)
    tab.paper(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    tab.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert tab.value("getComputedStyle(document.documentElement).getPropertyValue('--card')").strip() == "#ffffff"
    assert tab.value(
        "[...document.querySelectorAll('.drawing')].every((box) => box.scrollWidth <= box.clientWidth + 1)"
    )
    closed = "getComputedStyle(document.querySelector('details:not([open])'), '::details-content').contentVisibility"
    assert tab.value(closed) == "visible", "what is closed is printed too"
