"""The progress of a run that is printed without a terminal."""

from __future__ import annotations

import ast
import io
import itertools
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

import moe_dist.terminal as show_module
from moe_dist.launch.heard import Heard
from moe_dist.launch.progress import training_progress
from moe_dist.terminal import Show, duration, plain_facts, plain_table, say, say_table
from moe_dist.train.log import last_metrics


def shown(show: Show) -> str:
    output = show.console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


@pytest.fixture
def show() -> Show:
    return Show(Console(file=io.StringIO(), width=100))


def clock_of(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the terminal sees, which stands still until the test sets it."""
    now = [100.0]
    monkeypatch.setattr(show_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_a_log_gets_a_line_with_share_note_and_time_left(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = clock_of(monkeypatch)
    monkeypatch.setattr(show_module, "LINE_EVERY_SECONDS", 0.0)
    with show.working("train"):
        clock[0] += 10
        show.update(25, 100, "epoch 1")
    assert "25% epoch 1, about 30.0 s left" in shown(show) and "+ train" in shown(show)


def test_images_of_shards_are_counted_by_the_second(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = clock_of(monkeypatch)
    monkeypatch.setattr(show_module, "LINE_EVERY_SECONDS", 0.0)
    show.shards("train", 1000, 9000)  # the first thousand were there already
    clock[0] += 10
    show.shards("train", 5000, 9000)
    show.shards("test", 0, 50)
    clock[0] += 1
    show.shards("test", 10, 50)
    # 4,000 images in 10 s are 400 a second, and 4,000 are left: the first thousand say nothing of the time.
    assert "train 5,000/9,000 images, 400/s, about 10.0 s left" in shown(show)
    assert "test 10/50 images, 10/s, about 4.0 s left" in shown(show)


def line_of(step: int, written: float) -> str:
    """A line of metrics.jsonl of a training of 1,001 steps; its log is written at `written`, in seconds."""
    line = {"time": written, "kind": "step", "stage": "features", "epoch": 1, "step": step, "of_steps": 1001}
    return json.dumps(line | {"loss": 0.5, "images_per_second": 64.0}) + "\n"


def test_the_time_left_of_a_resumed_training_is_told_from_its_own_steps(
    show: Show, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """10 steps in 20 s, and 840 are left: 1,680 s. With the 151 from before it would be 161 in 25 s, and 130 s left."""
    clock = clock_of(monkeypatch)
    monkeypatch.setattr(show_module, "LINE_EVERY_SECONDS", 0.0)
    path = tmp_path / "metrics.jsonl"
    checkpoint, lost = line_of(150, 999.0), line_of(157, 1000.0)
    first, later = line_of(151, 2000.0), line_of(161, 2020.0)
    path.write_text(checkpoint + lost)
    with show.working("train"):
        look = training_progress(show, Heard(tmp_path))
        assert look() is None
        path.write_text(checkpoint)  # the log is cut back to the checkpoint
        assert look() is None
        for seconds, text in ((5.0, checkpoint + first), (20.0, checkpoint + first + later)):
            clock[0] += seconds
            path.write_text(text)
            seen = look()
            assert seen is not None
            show.update(*seen)
    (told,) = [line for line in shown(show).splitlines() if "left" in line]
    assert told.strip() == "16% features epoch 2, loss 0.5000, 64 images/s, about 28.0 min left"


def test_a_failed_step_leaves_a_mark(show: Show) -> None:
    with pytest.raises(ValueError), show.working("train"):
        raise ValueError
    assert "x train" in shown(show)


def test_the_last_metrics_are_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_metrics(path) is None
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert last_metrics(path) == {"step": 2}
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": \0\0}\n')
    assert last_metrics(path) == {"step": 2}


def test_the_line_of_an_epoch_of_very_many_experts_is_read_whole(tmp_path: Path) -> None:
    line = {f"gradient_share/expert_{expert}": 1 / 300 for expert in range(300)}
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(line)}\n")
    assert last_metrics(tmp_path / "metrics.jsonl") == line


def test_a_training_is_watched_though_an_earlier_line_has_no_time(show: Show, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    look = training_progress(show, Heard(tmp_path))
    path.write_text(line_of(2, 2000.0))
    assert look() == (2, 1001, "features epoch 2, loss 0.5000, 64 images/s")


def watched(show: Show, monkeypatch: pytest.MonkeyPatch, looks: list[tuple[float, float, str] | Exception]) -> str:
    """The output while `looks` are seen, one after another, the last one again and again."""
    monkeypatch.setattr(show_module, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(show_module, "LINE_EVERY_SECONDS", 0.0)
    seen, count = threading.Event(), itertools.count()

    def look() -> tuple[float, float, str]:
        number = next(count)
        if number > len(looks):  # all of them were shown or passed over
            seen.set()
        answer = looks[min(number, len(looks) - 1)]
        if isinstance(answer, Exception):
            raise answer
        return answer

    others = set(threading.enumerate())
    with show.working("train"), show.watching(look):
        (watcher,) = set(threading.enumerate()) - others
        while watcher.is_alive() and not seen.is_set():
            time.sleep(0.001)
        assert seen.is_set(), "nobody looks any more"
    return shown(show)


def test_progress_goes_on_after_a_look_that_failed(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [KeyError("of_steps"), FileNotFoundError("metrics.jsonl"), json.JSONDecodeError("cut", "{", 1)]
    told = watched(show, monkeypatch, [(25, 100, "before"), *failures, (50, 100, "after")])
    assert "25% before" in told and "50% after" in told and "cannot be shown" not in told


def test_progress_that_cannot_be_shown_at_all_is_told_once(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    told = watched(show, monkeypatch, [KeyError("loss")] * 3 * show_module.FAILED_LOOKS_TOLD)
    assert told.count("! progress cannot be shown (KeyError: 'loss'); the work goes on") == 1
    assert "+ train" in told


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (119.9, "119.9 s"), (120, "2.0 min"), (7199, "120.0 min"), (12528, "3.48 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


NAMES = ["exp[v2]", "x[/y]", "[red]", "a[/]", "run:smile:", "[link=x]y"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_printed_as_it_is(name: str, show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show_module, "LINE_EVERY_SECONDS", 0.0)
    show.headline(name)
    show.notice(name)
    show.skipped(name, 1.0)
    with show.working(name):
        show.update(25, 100, name)
    with pytest.raises(ValueError), show.working(name):
        raise ValueError
    say(show.console, (name, "bold"), f" into {name}")
    say_table(show.console, plain_table([name, name], [[name, name]], name, name))
    say_table(show.console, plain_facts({name: name}))
    assert shown(show).count(name) == 16


@pytest.mark.parametrize("name", NAMES)
def test_live_bars_show_a_name_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    show = Show(console)
    with show.working(name):
        show.update(25, 100, f"note {name}")
        assert show._bars is not None
        show._bars.refresh()
    assert shown(show).count(f"note {name}") >= 1 and shown(show).count(name) >= 3


def test_a_line_is_never_broken() -> None:
    console = Console(file=io.StringIO(), width=20)
    say(console, f"report: {'long folder/' * 10}report.html")
    assert console.file.getvalue().count("\n") == 1  # type: ignore[attr-defined]


def test_nothing_is_printed_by_rich_but_in_the_terminals_file() -> None:
    """What rich prints as a str is read as markup: [v2] is lost, and [/y] is an error."""
    package = Path(show_module.__file__).parent
    found = []
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            prints = isinstance(node, ast.Attribute) and node.attr in ("print", "log", "rule") and name != "terminal.py"
            if prints and ast.unparse(node.value).endswith("console"):
                found.append(f"{name}: {ast.unparse(node)}")
            if isinstance(node, ast.ImportFrom) and node.module in ("rich", "rich.markup"):  # their print and escape
                found.append(f"{name}: from {node.module} import ...")
            made = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if made == "Console" and name != "terminal.py" and ast.unparse(node) != "Console(quiet=True)":
                found.append(f"{name}: {ast.unparse(node)}")
            if made.startswith("Table") and name != "terminal.py" and "from rich.table import" in path.read_text():
                found.append(f"{name}: {made}")
    assert found == []
