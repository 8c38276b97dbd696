"""The doctor's job on a cluster: `python -m moe_dist.launch.doctor_job --out FOLDER` asks every node for its facts."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_dist.launch.node_facts import examine, now
from moe_dist.launch.ray_nodes import ask_every_node
from moe_dist.launch.shared_folder import witness_in

MARK = "moe-dist doctor: "
"""How the line begins in which the nodes' answers are, as JSON."""
EXAMINE_SECONDS = 240.0
"""How long a node may take to load torch and to look at its folders."""


def main() -> None:
    """Ask all nodes, and print their answers in one line that begins with MARK."""
    import ray

    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    out = parser.parse_args().out
    looked_at = {"--out": str(out), "cache": os.environ["MOE_DIST_CACHE"]} if out else {}
    ray.init(log_to_driver=False)
    print(MARK + json.dumps(_patients(looked_at)), flush=True)


def _patients(looked_at: Mapping[str, str]) -> list[dict[str, Any]]:
    """What every node answers, as the fields of `Patient`."""
    with contextlib.ExitStack() as stack:
        witnesses = [stack.enter_context(witness_in(Path(folder))) for folder in looked_at.values()]
        answers = ask_every_node(examine, looked_at, witnesses, seconds=EXAMINE_SECONDS)
    before = time.time()
    clocks = {answer.node: answer.value for answer in ask_every_node(now)}
    after = time.time()
    patients = []
    for answer in answers:
        facts, wrong = (None, [answer.silence]) if answer.silence else answer.value
        clock = clocks.get(answer.node)
        ahead = None if clock is None else max(0.0, clock - after) or min(0.0, clock - before)
        about = {"name": answer.address, "facts": facts, "wrong": wrong, "clock": ahead, "gpus": answer.gpus}
        patients.append(about)
    return patients


if __name__ == "__main__":
    main()
