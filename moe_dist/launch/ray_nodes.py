"""Asks every node of the cluster to which this process is connected, by a task for which no node is too busy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_dist.errors import UserError
from moe_dist.launch.shared_folder import what_is_wrong, witness_in

ANSWER_SECONDS = 60.0
"""How long a node may take: it starts a process, which may have to unpack the job's code."""


@dataclass(frozen=True)
class Answer:
    """What a node answered, or why it did not. gpus: how many Ray offers there."""

    node: str
    address: str
    gpus: float
    value: Any = None
    silence: str = ""


def ask_every_node(function: Callable[..., Any], *arguments: Any, seconds: float = ANSWER_SECONDS) -> list[Answer]:
    """Call function(*arguments) on every living node at the same time. The answers are in the order of addresses."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    asked = []
    for node in nodes:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
        asked.append(task.remote(*arguments))
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=seconds)
    answers = []
    for node, reference in zip(nodes, asked):
        about = {
            "node": node["NodeID"],
            "address": node["NodeManagerAddress"],
            "gpus": node["Resources"].get("GPU", 0.0),
        }
        if reference not in ready:
            ray.cancel(reference, force=True)
            answers.append(Answer(**about, silence=f"does not answer within {seconds:g} s"))
            continue
        try:
            answers.append(Answer(**about, value=ray.get(reference)))
        except ray.exceptions.RayError as error:
            answers.append(Answer(**about, silence=f"cannot run a task ({str(error).strip().splitlines()[-1]})"))
    return sorted(answers, key=lambda answer: answer.address)


def require_shared(folders: Mapping[str, Path]) -> None:
    """Raise UserError where a node does not share one of the folders, which are given by what the user calls them."""
    with contextlib.ExitStack() as stack:
        witnesses = [stack.enter_context(witness_in(folder)) for folder in folders.values()]
        answers = ask_every_node(what_is_wrong, witnesses)
    for number, (name, folder) in enumerate(folders.items()):
        wrong = {answer.address: answer.silence or answer.value[number] for answer in answers}
        if told := [f"{address} {sentence}" for address, sentence in wrong.items() if sentence]:
            raise UserError(
                f"{name} {folder}: {'; '.join(told)}. All nodes work there: name a folder on storage that they share"
            )
