"""YAML by the core schema of YAML 1.2, read and written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from moe_dist.yaml_core import WRITTEN_BY_1_2, dump_yaml, load_run_yaml, load_yaml


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("010", 10),
        ("-07", -7),
        ("0o17", 15),
        ("0x1F", 31),
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("1:30", "1:30"),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("OFF", "OFF"),
        ("True", True),
        ("false", False),
        ("2024-01-31", "2024-01-31"),
        ("=", "="),
        ("~", None),
        ("null", None),
        ("", None),
    ],
)
def test_a_plain_word_is_read_by_the_core_schema(written: str, value: Any) -> None:
    read = load_yaml(f"field: {written}")["field"]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: `a` is given here and in line 1"),
        ("a:\n  b: {c: 1, c: 1}", "line 2: `c` is given twice"),
        ("1: a\n01: b", "line 2: `01` is given here and in line 1"),
        ("x: &x {a: 1}\ny: {<<: *x, <<: *x}", "line 2: `<<` is given twice"),
        ("a: 1\nb: [1,", "line 2: while parsing"),
        ("a: 1\nb: \x07", "line 2: holds the character #x0007"),
        ("a: 1\n---\nb: 2", "line 2: expected a single document"),
        ("a: " + "9" * 5000, "line 1: 99999999999999999999 is no number"),
        ("[" * 5000, "nested too deeply"),
        ("a: 1\n? [b]\n: 2", "line 2: the name of a field is a word"),
        ("a: 1\nb: {<<: c}", "line 2: `<<` merges mappings alone"),
        ("a: &a {<<: *a}", "nested too deeply"),
        ("a: !!python/object:os.system 1", "could not determine a constructor"),
    ],
    ids=range(13),
)
def test_what_is_no_yaml_is_told_with_its_line(text: str, said: str) -> None:
    with pytest.raises(ValueError) as told:
        load_yaml(text)
    assert said in str(told.value) and "\n" not in str(told.value)


def test_fields_of_a_merged_mapping_may_be_given_again() -> None:
    read = load_yaml("one: &one {a: 1, b: 2}\ntwo: &two {<<: *one, b: 3}\nthree: {<<: *two, a: 4}\nfour: *two")
    assert read["two"] == read["four"] == {"a": 1, "b": 3} and read["three"] == {"a": 4, "b": 3}
    assert load_yaml("one: &one {depth: 1}\ntwo: &two {depth: 2, width: 2}\nboth: {<<: [*one, *two]}")["both"] == {
        "depth": 1,
        "width": 2,
    }


@pytest.mark.parametrize(
    "value",
    [
        *("1e3", "1e-3", "0o17", "09", "yes", "010", "1:30", "1_0", "~", "", "2024-01-31", "set #2", "a: b", "*x", "Ä"),
        *(1e-05, 1e22, 0.1, -3, math.inf, True, None),
    ],
)
def test_what_is_written_is_read_the_same_by_either_schema(value: Any) -> None:
    written = dump_yaml({"field": value})
    assert load_yaml(written) == {"field": value} == yaml.safe_load(written)


def test_a_job_of_a_run_of_an_earlier_version_is_read_as_it_was_written() -> None:
    """PyYAML's own dumper left these words without quotes."""
    job = {"name": "1e3", "title": "0o17", "rate": 1e-05, "other": "yes"}
    assert load_run_yaml(yaml.safe_dump(job, sort_keys=False)) == job
    assert load_run_yaml(WRITTEN_BY_1_2 + dump_yaml(job)) == job
    assert load_run_yaml(WRITTEN_BY_1_2 + "seed: 010") == {"seed": 10}


def test_nothing_reads_or_writes_yaml_by_another_schema() -> None:
    package = Path(__file__).parents[1] / "moe_dist"
    others = [path.name for path in package.rglob("*.py") if "import yaml" in path.read_text()]
    assert sorted(others) == ["overrides.py", "yaml_core.py"]
    assert "yaml.safe_" not in (package / "overrides.py").read_text()
