"""What is shown while a run goes on, where there is no terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

import moe_dist.train.show as show_module
from moe_dist.train.show import Show, last_metrics


def shown(show: Show) -> str:
    output = show.console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


@pytest.fixture
def show() -> Show:
    return Show(Console(file=io.StringIO(), width=100))


def test_a_log_gets_a_line_with_share_note_and_time_left(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show_module, "LINE_EVERY_SECONDS", 0.0)
    with show.working("train"):
        show.update(25, 100, "epoch 1")
    assert "25% epoch 1, about 0.0 s left" in shown(show) and "+ train" in shown(show)


def test_images_of_shards_are_counted_by_the_second(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 100.0, 110.0, 110.0, 112.0, 112.0, 113.0, 113.0])
    monkeypatch.setattr(show_module, "LINE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(show_module.time, "perf_counter", lambda: next(times))
    show.shards("train", 1000, 9000)  # the first thousand were there already
    show.shards("train", 5000, 9000)
    show.shards("test", 0, 50)
    show.shards("test", 10, 50)
    # 4,000 images in 10 s are 400 a second, and 4,000 are left: the first thousand say nothing of the time.
    assert "train 5,000/9,000 images, 400/s, about 10.0 s left" in shown(show)
    assert "test 10/50 images, 10/s, about 4.0 s left" in shown(show)


def test_a_failed_step_leaves_a_mark(show: Show) -> None:
    with pytest.raises(ValueError), show.working("train"):
        raise ValueError
    assert "x train" in shown(show)


def test_the_last_metrics_are_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_metrics(path) is None
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert last_metrics(path) == {"step": 2}
