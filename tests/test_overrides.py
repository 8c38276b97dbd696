"""Overrides by --set and by @FILE: nothing of a value is lost, and comments are what the documentation says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from moe_dist.errors import UserError
from moe_dist.job import Job, load_job

JOBS = Path(__file__).parents[1] / "jobs"


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "kind": "train", "method": {"name": "dfcp"}}))
    return path


def by_file(job_file: Path, line: str) -> Job:
    overrides = job_file.with_name("changes.set")
    overrides.write_text(line, encoding="utf-8")
    return load_job(job_file, [f"@{overrides}"])


@pytest.mark.parametrize("title", ["set #2", "#2", "a#b", "set # 2", "x: y #z", "C# and #", "50 % #1"])
def test_a_value_is_taken_whole_though_it_holds_a_hash(title: str, job_file: Path) -> None:
    assert load_job(job_file, [f"title={title}"]).title == title
    assert by_file(job_file, f"title={title}").title == title


def test_a_path_with_a_hash_is_that_path(job_file: Path, tmp_path: Path) -> None:
    changes = [f"data.source={tmp_path}/set #2"]
    assert load_job(job_file, changes).data.source == tmp_path / "set #2"
    assert by_file(job_file, *changes).data.source == tmp_path / "set #2"


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("workers=2  # two", "workers", 2),
        ("workers=2\t  #two", "workers", 2),
        ("title=set #2   # the second", "title", "set #2"),
        ("title=   # none", "title", None),
        ('title="set  # 2"  # quoted', "title", "set  # 2"),
        ("title='set  # 2' # quoted", "title", "set  # 2"),
        ("method.clusters.radii=[0.2, 0.8] # two", "method.clusters.radii", (0.2, 0.8)),
        ('method={name: dfcp}   # "a"', "method.name", "dfcp"),
        ("# a line\n\n   # another\nworkers=3", "workers", 3),
        ("\ufeffworkers=4\r\ntitle=x\r\n", "title", "x"),
    ],
)
def test_comments_of_a_file_of_overrides(line: str, field: str, value: Any, job_file: Path) -> None:
    if value is None:
        with pytest.raises(UserError, match=r"title: input should be a valid string, got None"):
            by_file(job_file, line)
        return
    found: Any = by_file(job_file, line)
    for name in field.split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("workers=2 # two", "workers: input should be a valid integer"),
        ('title="set" # 2', "'# 2' follows the value and is no part of it"),
        ("method.clusters.radii=[0.2, 0.8 #x]", "'#x]' follows the value"),
        ("method.clusters.radii=[0.2,", "is not a YAML value"),
        ("method.joint={epochs: 2, epochs: 3}", "is not a YAML value"),
    ],
)
def test_what_is_no_part_of_a_value_is_refused(override: str, said: str, job_file: Path) -> None:
    with pytest.raises(UserError) as told:
        load_job(job_file, [override])
    assert said in str(told.value)


def test_an_error_in_a_file_of_overrides_names_the_line(job_file: Path) -> None:
    with pytest.raises(UserError, match=r"--set @.*changes\.set: line 3: name\.first=x: name holds a value"):
        by_file(job_file, "# changes\n\nname.first=x")


@pytest.mark.parametrize("name", ["gtsrb", "tune_gtsrb"])
def test_the_shipped_files_of_overrides_are_read(name: str) -> None:
    job = load_job(JOBS / "dfcp" / f"{name}.yaml", [f"@{JOBS}/dfcp/{name}_2cores.set"])
    (dfcp, *_) = job.models.values()
    assert job.data.mean == (0.5, 0.5, 0.5) and dfcp.clusters.count == 430  # type: ignore[attr-defined]
