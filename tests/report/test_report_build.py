"""The whole report of synthetic runs: metrics.json, figures, and a page that opens by itself and believes nobody."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import write_run

from moe_dist.errors import UserError
from moe_dist.record.restarts import restart
from moe_dist.report.build import build_report
from tests.reference import metrics as reference

DIGITS = [str(digit) for digit in range(10)]
SIGNS = [f"{sign:05d}" for sign in range(43)]
HOSTILE = ["</td><script>alert(1)</script>", '"><img src="http://evil.example/x">', "$title & | $$x$"]
SECTIONS = ["results", "training", "classes", "experts", "method", "environment", "job", "notes"]
PARTS = {"header", "section"}
VOID = {"meta", "img", "link", "br", "input"}


class Page(HTMLParser):
    """Collects elements and text, and checks that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def ids(self) -> list[str]:
        """The anchors of the page's parts."""
        return [attributes["id"] or "" for tag, attributes in self.elements if tag in PARTS and "id" in attributes]

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_run(tmp_path_factory.mktemp("digits") / "run", DIGITS)
    build_report(path)
    return path


def read_page(run: Path) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


def test_sections_and_facts(digits: Path) -> None:
    page = read_page(digits)
    assert page.ids() == ["headline", *SECTIONS]
    for fact in (
        "moe-dist run jobs/demo.yaml --set workers=2",
        "sha256:4be1c0ffee",
        "1,293 training",
        "no GPU",
        "4.2 min",
    ):
        assert fact in page.text
    assert "not finished" not in page.text


def test_the_page_needs_no_network(digits: Path) -> None:
    page = read_page(digits)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe")
        assert not re.match(r"[a-z]+:|//", attributes.get("href") or "")  # to files beside the page alone
        for name in ("src", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    text = (digits / "report.html").read_text()
    assert set(re.findall(r"url\((.)", text)) == {"#"} and "@import" not in text  # parts of the page's own figures
    assert any("default-src 'none'" in (attributes.get("content") or "") for _, attributes in page.elements)


def test_every_figure_is_a_file_and_on_the_page(digits: Path) -> None:
    files = sorted(path.name for path in (digits / "figures").iterdir())
    per_model = {"confusion", "training"}
    expected = {f"{name}_{model}.svg" for name in per_model for model in ("dfcp", "traditional_moe", "dense")}
    expected |= {f"{name}_dfcp.svg" for name in ("radius_scan", "cluster_sizes", "pseudo_labels")}
    expected |= {f"reliability_{model}.svg" for model in ("dfcp", "traditional_moe", "dense")}
    expected |= {"precision_by_class.svg", "gate_load_dfcp.svg", "gate_load_traditional_moe.svg", "curves.svg"}
    assert files == sorted(expected)
    assert read_page(digits).count("svg") == read_page(digits).count("figcaption") == len(expected)


def test_metrics_are_flat_and_equal_a_slow_reference(digits: Path) -> None:
    metrics = json.loads((digits / "metrics.json").read_text())
    with np.load(digits / "dfcp/evaluation/predictions.npz") as arrays:
        labels, log_probs, log_probs_top1 = arrays["labels"], arrays["log_probs"], arrays["log_probs_top1"]
    assert metrics["dfcp/top1"] == np.mean(reference.predicted_class(log_probs) == labels)
    assert metrics["dfcp/top1_k1"] == np.mean(reference.predicted_class(log_probs_top1) == labels)
    assert metrics["dfcp/balanced_accuracy"] == pytest.approx(reference.balanced_accuracy(labels, log_probs))
    assert metrics["dfcp/map"] == pytest.approx(reference.mean_average_precision(labels, log_probs))
    written = {
        "dfcp/purity": 0.9634,
        "dfcp/pseudo_label_accuracy": 0.9712,
        "dfcp/outliers": 17,
        "dfcp/threshold": 0.4321,
        "dfcp/davies_bouldin_stage1": 1.42,
        "dfcp/davies_bouldin_stage2": 0.64,
        "dfcp/radius": 0.8,
        "dfcp/train_seconds_summed": 130.2,
        "dense/train_seconds_summed": 41.7,
        "dense/latency_median_ms": 1.6,
        "dfcp/latency_p99_ms_k1": 0.8,
    }
    assert {key: metrics[key] for key in written} == written
    assert "dense/purity" not in metrics and "dense/top1_k1" not in metrics


def test_the_page_and_metrics_json_agree(digits: Path) -> None:
    metrics, page = json.loads((digits / "metrics.json").read_text()), read_page(digits)
    for model in ("dfcp", "traditional_moe", "dense"):
        assert page.text.count(f"{100 * metrics[f'{model}/top1']:.2f} %") >= 2  # in the headline and in the table


def test_the_same_run_gives_the_same_files(digits: Path) -> None:
    before = {path: path.read_bytes() for path in digits.rglob("*") if path.is_file()}
    build_report(digits)
    assert {path: path.read_bytes() for path in digits.rglob("*") if path.is_file()} == before


def test_43_classes(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", SIGNS, methods=("dfcp", "dense"), test_images=430, dataset="gtsrb")
    build_report(path)
    page = read_page(path)
    assert page.ids() == ["headline", *SECTIONS]
    assert all(sign in page.text for sign in SIGNS)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    evil = "<script>alert(2)</script>"
    path = write_run(tmp_path / "run", HOSTILE, title=f"$x {evil}", dataset=evil, methods=("dfcp",))
    build_report(path)
    page = read_page(path)
    assert page.count("script") == 1  # the page's own
    assert all((attributes.get("src") or "data:").startswith("data:") for _, attributes in page.elements)
    assert page.count("img") == 0
    assert all(name in page.text for name in (*HOSTILE, f"$x {evil}"))


def test_an_unfinished_run_says_so_and_shows_what_is_there(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", DIGITS, evaluated=[])
    record = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(record | {"status": "running", "seconds": None}))
    build_report(path)
    page = read_page(path)
    assert "not finished (status: running); not evaluated yet: DFCP-MoE, Traditional MoE, Dense." in page.text
    assert page.ids() == ["headline", "results", "training", "method", "environment", "job", "notes"]
    assert not list((path / "figures").glob("precision*")) and list((path / "figures").glob("training_dfcp.svg"))


def test_a_report_written_again_removes_its_own_figures_that_it_no_longer_shows(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", DIGITS, methods=("dfcp",))
    build_report(path)
    figures = path / "figures"
    copied, changed = figures / "for_the_paper.svg", figures / "reliability_dfcp.svg"
    copied.write_bytes((figures / "confusion_dfcp.svg").read_bytes())
    changed.write_text(changed.read_text() + "<!-- by hand -->")
    (path / "dfcp" / "evaluation" / "evaluation.json").unlink()
    build_report(path)
    assert {file.name for file in figures.iterdir()} - {"training_dfcp.svg"} == {
        *("radius_scan_dfcp.svg", "cluster_sizes_dfcp.svg", "pseudo_labels_dfcp.svg"),
        *(copied.name, changed.name),
    }


def test_pictures_of_a_report_from_before_svg_go_and_others_stay(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", DIGITS, methods=("dfcp",))
    ours, converted = path / "figures" / "training_dfcp.png", path / "figures" / "confusion_dfcp.png"
    ours.parent.mkdir()
    ours.write_bytes(b"drawn by an older version")
    converted.write_bytes(b"made of the SVG by a user")
    (path / "report.html").write_text(f'<img src="data:image/png;base64,{b64encode(ours.read_bytes()).decode()}">')
    build_report(path)
    assert not ours.exists() and converted.exists()


def test_restarts_are_warned_of_and_told_one_by_one(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", DIGITS, methods=("dfcp",))
    record = json.loads((path / "run.json").read_text())
    died = restart("the training of dfcp", "worker died", "the worker of rank 1 died", step=42)
    del died["workers"]  # as in runs of before
    caught_up = died | {"from_step": 36, "workers": 2, "seconds_lost": 21.25}
    begun = {"status": "finished", "started": "2026-01-01T10:00:00"}
    starts = [begun | {"restarts": [died]}, begun, begun | {"restarts": [caught_up]}]
    (path / "run.json").write_text(json.dumps(record | {"starts": starts}))
    build_report(path)
    assert "Survived: 2 restarts, 21.2 s lost; a table below" in read_page(path).text
    markdown = (path / "results.md").read_text()
    (first, second) = (line for line in markdown.splitlines() if line.startswith("| the worker of rank 1 died"))
    assert first.endswith("| 42 | – | – | – |") and second.endswith("| 42 | 36 | 2 | 21.2 s |")


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", DIGITS, methods=("dense",), evaluated=[])
    (path / "dense/metrics.jsonl").unlink()
    build_report(path)
    assert read_page(path).ids() == ["headline", "results", "environment", "job", "notes"]


def test_a_scan_without_a_sufficient_radius(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", DIGITS, methods=("dfcp",))
    file = path / "dfcp/steps/second_stage/result.json"
    result = json.loads(file.read_text())
    result["values"] |= {"chosen": None, "davies_bouldin": 1.42}
    result["values"]["scan"][0]["davies_bouldin"] = None
    file.write_text(json.dumps(result))
    build_report(path)
    metrics = json.loads((path / "metrics.json").read_text())
    assert metrics["dfcp/davies_bouldin_stage2"] == 1.42 and "dfcp/radius" not in metrics
    assert "no radius had sufficient coverage" in read_page(path).text


def test_classes_without_test_images_are_counted_on_the_page(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", DIGITS, methods=("dense",), test_images=7)
    build_report(path)
    assert "3 of 10 classes have no test image" in read_page(path).text


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        build_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_report_needs_neither_ray_nor_deepspeed_nor_torch() -> None:
    code = "import sys, moe_dist.report.build; print({'ray', 'deepspeed', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
