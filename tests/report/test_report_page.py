"""What a report's page says beside its figures: warnings, links, data; and how its figures take the page's colours."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_run import write_run

from moe_dist.plots.drawing import Picture
from moe_dist.plots.style import ACCENT, INK, new_figure, save_figure, style
from moe_dist.report.build import build_report
from moe_dist.report.frame import Section, whole_page
from moe_dist.report.inline import figure_html
from moe_dist.report.page import render_page
from moe_dist.report.run import RunDirectory
from moe_dist.report.warnings import warnings_of

NAMES = ["ant", "bee", "cat"]


def run_with(path: Path, **record: Any) -> RunDirectory:
    """A run whose run.json says these things, too."""
    write_run(path, NAMES, methods=("dense",), paper_table=None)
    (path / "run.json").write_text(json.dumps(json.loads((path / "run.json").read_text()) | record))
    return RunDirectory(path)


def start(status: str, **more: Any) -> dict[str, Any]:
    return {"status": status, "started": "2026-01-31T12:00:00", "seconds": 30.0, "host": "another"} | more


def test_a_run_that_went_well_warns_of_nothing(tmp_path: Path) -> None:
    assert warnings_of(run_with(tmp_path / "run", starts=[start("finished")])) == []


def test_starts_that_did_not_finish_are_told_with_their_reasons(tmp_path: Path) -> None:
    reason = "stage joint, step 12: the term expert is nan"
    starts = [start("failed", reason=reason), start("killed", seconds=0.5), start("finished")]
    assert warnings_of(run_with(tmp_path / "run", starts=starts)) == [
        f"Start 1 of 3 (2026-01-31 12:00:00) failed after 30.0 s: {reason}.",
        "Start 2 of 3 (2026-01-31 12:00:00) was killed after 0.5 s.",
    ]


def test_what_the_run_said_of_its_data_and_left_out_is_told(tmp_path: Path) -> None:
    bad = {"count": 3, "first": ["a.tar: 1.png: cut short", "a.tar: 2.png: cut short"]}
    left_out, notice = warnings_of(run_with(tmp_path / "run", bad_samples=bad, notices=["1 class has no test image"]))
    assert notice == "1 class has no test image"
    assert left_out.startswith("Bad samples: 3 left out") and left_out.endswith(
        "a.tar: 1.png: cut short; a.tar: 2.png: cut short; 1 more in the folder bad_samples."
    )


def test_a_training_in_parts_by_other_code_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run_with(path)
    made = [{"code": code, "hardware": ["2 cores"]} for code in ("0.1.0+a", "0.1.0+a", "0.1.0+b")]
    (path / "dense/training.json").write_text(json.dumps({"made": made}))
    assert warnings_of(RunDirectory(path)) == ["dense was trained in parts by different code: 0.1.0+a; 0.1.0+b."]


def test_warnings_stand_first_and_what_they_quote_stays_text(tmp_path: Path) -> None:
    text = render_page(run_with(tmp_path / "run", notices=["<b>bold</b> of `data.source`"]), [], [])
    assert "&lt;b&gt;bold&lt;/b&gt; of <code>data.source</code>" in text
    assert re.findall(r'<section id="(\w+)"', text)[:2] == ["warnings", "classes"]


def test_the_page_links_to_what_lies_beside_it_and_a_cell_to_its_grid(tmp_path: Path) -> None:
    for path, grid in ((tmp_path / "run", []), (tmp_path / "cells" / "dense.seed0", ["../../report.html"])):
        links = re.findall(r'<a href="([^#"][^"]*)"', render_page(run_with(path), [], []))
        assert links == [*grid, "job.yaml", "run.json"]


def test_the_data_is_shown_by_counts_and_images(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run_with(path, class_counts=[5, 4, 3])
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), np.uint8)
    np.savez_compressed(path / "sample_images.npz", images=images, labels=np.array([0, 0, 0, 2, 2]))
    text = build_report(path).read_text()
    assert 'aria-label="Training images by class (digits, n = 12)"' in text
    assert 'aria-label="Some training images of 2 classes (digits)"' in text
    assert 'id="data"' in text and (path / "figures" / "sample_images.svg").is_file()


def test_only_the_page_s_own_script_may_run() -> None:
    page = whole_page("A <title>", "Training", "", [Section("empty", "Empty", ""), Section("one", "One", "<p>1</p>")])
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page and "default-src 'none'" in page
    assert "A &lt;title&gt;" in page and "Empty" not in page and '<a href="#one">One</a>' in page


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Picture:
    with style():
        figure = new_figure("Two -- lines <of> text", 2.0)
        axes = figure.subplots()
        axes.plot([0, 1], [1, 2], color=ACCENT)
        axes.imshow(np.eye(3))
        path = tmp_path_factory.mktemp("figure") / "a.svg"
        save_figure(figure, path, "svg")
    return Picture(path, 1.0, 'A "heading"', "How to read <it>", "training")


def test_a_figure_takes_the_colours_of_the_page_and_says_what_it_shows(picture: Picture) -> None:
    html = figure_html(picture, 7)
    assert "var(--colour-0)" in html and "var(--ink)" in html and "var(--card)" in html
    assert ACCENT not in html and INK not in html and "#ffffff" not in html
    assert 'role="img" aria-label="A &quot;heading&quot;" aria-describedby="caption-7"' in html
    assert '<figcaption id="caption-7">How to read &lt;it&gt;</figcaption>' in html
    assert "<!--" not in html and "<metadata" not in html and "<style" not in html


def test_two_figures_on_a_page_share_no_name_and_every_name_is_there(picture: Picture) -> None:
    names = [set(re.findall(r' id="([^"]*)"', figure_html(picture, number))) for number in (1, 2)]
    assert names[0] and not names[0] & names[1]
    used = re.findall(r'(?:xlink:href="#|url\(#)([^")]*)', figure_html(picture, 1))
    assert used and set(used) <= names[0]
