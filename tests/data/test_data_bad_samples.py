"""Bad samples are noted once, by several processes in one folder, and end a run beyond its limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_dist.data.bad_samples import BadSample, BadSamples, read_bad_samples
from moe_dist.errors import UserError


def test_without_a_limit_the_first_one_is_raised():
    with pytest.raises(BadSample, match=r"a.tar: 1.png: cut short"):
        BadSamples(limit=None).take(BadSample("a.tar: 1.png: cut short"))


def test_each_is_counted_once_and_the_one_beyond_the_limit_ends_the_run():
    noted = BadSamples(limit=2)
    for key in ("1", "2", "1", "2"):
        noted.take(BadSample(f"a.tar: {key}.png: cut\nshort"))
    assert noted.sentences() == ["a.tar: 1.png: cut short", "a.tar: 2.png: cut short"]
    with pytest.raises(UserError, match=r"3 bad samples .*bad_samples_limit = 2 .*a.tar: 3.png: cut short\)"):
        noted.take(BadSample("a.tar: 3.png: cut short"))


def test_what_was_met_before_there_was_a_folder_is_written_to_it(tmp_path: Path):
    noted = BadSamples(limit=5)
    noted.take(BadSample("early"))
    noted.write_to(tmp_path / "run/bad_samples")
    noted.take(BadSample("late"))
    assert read_bad_samples(tmp_path / "run/bad_samples") == ["early", "late"]


def test_the_limit_counts_what_all_processes_of_the_run_met(tmp_path: Path):
    (tmp_path / "elsewhere-17.txt").write_text("one\ntwo\n")
    noted = BadSamples(limit=2)
    noted.write_to(tmp_path)
    noted.take(BadSample("two"))
    assert noted.sentences() == ["one", "two"]
    with pytest.raises(UserError, match="3 bad samples"):
        noted.take(BadSample("three"))


def test_a_run_without_bad_samples_leaves_no_folder(tmp_path: Path):
    BadSamples(limit=2).write_to(tmp_path / "bad_samples")
    assert not (tmp_path / "bad_samples").exists() and read_bad_samples(tmp_path / "bad_samples") == []
