"""ray_cluster.yaml passes Ray's own offline checks, shows no open dashboard and asks for a token."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def prepared(repository: Path) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((repository / "ray_cluster.yaml").read_text()))
    validate_config(config)
    return config


def start_lines(config: dict[str, Any], kind: str) -> list[str]:
    return [line for line in config[f"{kind}_start_ray_commands"] if "ray start" in line]


def test_the_dashboard_listens_on_the_head_alone(prepared: dict[str, Any]) -> None:
    (line,) = start_lines(prepared, "head")
    assert re.findall(r"--dashboard-host=(\S+)", line) == ["127.0.0.1"]
    assert "0.0.0.0" not in yaml.safe_dump(prepared)


def test_every_node_has_the_token_on_from_a_mounted_file(prepared: dict[str, Any]) -> None:
    for kind in ("head", "worker"):
        (line,) = start_lines(prepared, kind)
        assert "RAY_AUTH_MODE=token" in line
        (path,) = re.findall(r"RAY_AUTH_TOKEN_PATH=(\S+)", line)
        assert path in prepared["file_mounts"]
        assert f"chmod 600 {path}" in prepared["setup_commands"]
        assert "RAY_AUTH_TOKEN=" not in line


def test_workers_come_and_go(prepared: dict[str, Any]) -> None:
    workers = prepared["available_node_types"]["gpu_worker"]
    assert (workers["min_workers"], workers["max_workers"], prepared["max_workers"]) == (0, 4, 4)


def test_mounted_files_exist(prepared: dict[str, Any], repository: Path) -> None:
    local = [path for path in prepared["file_mounts"].values() if not path.startswith("~")]
    assert {"pyproject.toml", "moe_dist"} <= set(local)
    for path in local:
        assert (repository / path).exists(), path
