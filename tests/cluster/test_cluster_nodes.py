"""Three Ray nodes with a token on this machine: jobs go in with it, none without, and nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from running_cluster import RunningCluster

pytestmark = pytest.mark.slow

SUBMIT = """
import sys
from pathlib import Path
from moe_dist.launch.submit import await_end, connect, ship
address, root, exit_code = sys.argv[1:]
command = ["python", "entry.py", exit_code]
job = ship(connect(address), command, root=Path(root), name="stub", files={}, environment={"FROM_HERE": "yes"})
sys.exit(await_end(job, follow=True))
"""

ENTRY = """
import os, sys
from pathlib import Path
Path({witness!r}, sys.argv[1]).write_text(os.environ["FROM_HERE"])
print("ran as", sys.argv[1])
sys.exit(int(sys.argv[1]))
"""


def submit(nodes: RunningCluster, folder: Path, exit_code: int, token: bool) -> subprocess.CompletedProcess[str]:
    """Submit a job that leaves a file named after its exit code and ends with it."""
    (folder / "tree").mkdir(exist_ok=True)
    (folder / "tree" / "entry.py").write_text(ENTRY.format(witness=str(folder)))
    return subprocess.run(
        [sys.executable, "-c", SUBMIT, nodes.cluster.dashboard, str(folder / "tree"), str(exit_code)],
        env=nodes.environment(token),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("exit_code", [0, 3])
def test_a_job_runs_and_its_exit_code_comes_back(three_nodes: RunningCluster, tmp_path: Path, exit_code: int) -> None:
    outcome = submit(three_nodes, tmp_path, exit_code, token=True)
    assert outcome.returncode == exit_code, outcome.stdout + outcome.stderr
    assert f"ran as {exit_code}" in outcome.stdout
    assert (tmp_path / str(exit_code)).read_text() == "yes"


def test_without_the_token_it_is_refused_and_nothing_runs(three_nodes: RunningCluster, tmp_path: Path) -> None:
    outcome = submit(three_nodes, tmp_path, 0, token=False)
    assert outcome.returncode != 0
    assert "asks for a token (401)" in outcome.stderr
    assert not (tmp_path / "0").exists()


def test_the_nodes_are_alive_and_no_output_holds_the_token(three_nodes: RunningCluster) -> None:
    import local

    addresses = {node["node_ip"] for node in local.alive_nodes(three_nodes.cluster)}
    assert addresses == {"127.0.0.2", "127.0.0.3", "127.0.0.4"}
    token = Path(three_nodes.cluster.token_path).read_text()
    logs = [*three_nodes.folder.glob("*"), *Path(three_nodes.cluster.temporary).glob("*/session_2*/logs/**/*")]
    written = [path for path in logs if path.is_file() and path.name != "token"]
    assert len(written) > 10
    assert [path for path in written if token in path.read_text(errors="replace")] == []


def test_stopping_leaves_nothing(three_nodes: RunningCluster) -> None:
    """Last in this file: it ends the cluster that the others use."""
    import local
    import processes

    ours = processes.descendants([node.process for node in three_nodes.cluster.nodes])
    assert len(ours) > 3 * 3, "each node is at least a `ray start`, a raylet and its agents"
    local.stop(three_nodes.folder)
    assert [process for process in ours if processes.is_alive(process)] == []
    assert not Path(three_nodes.cluster.temporary).exists()
    assert not Path(three_nodes.cluster.token_path).exists()
    assert local.load(three_nodes.folder) is None
