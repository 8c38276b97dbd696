"""`moe-dist doctor`: what the machines have for training, and what is wrong with them in a sentence each."""

from __future__ import annotations

import json
import os
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_dist.errors import UserError
from moe_dist.files import require_writable
from moe_dist.launch.doctor_job import MARK
from moe_dist.launch.job_server import connect
from moe_dist.launch.node_facts import node_facts
from moe_dist.launch.submit import job_environment, ship
from moe_dist.record.run_place import RunPlace
from moe_dist.terminal import plain_table

if TYPE_CHECKING:
    from rich.table import Table

HERE = "here"
LEAST_FREE_BYTES = 5 * 2**30
LEAST_OPEN_FILES = 4096
MOST_CLOCK_SECONDS = 2.0


@dataclass(frozen=True)
class Patient:
    """A machine: `here`, or a node by its address.

    facts: of `node_facts`; None if it did not answer. wrong: what is known to be wrong with it. clock: seconds by which
    its clock is ahead of the head's. gpus: how many Ray offers there; None where it is not of a Ray cluster.
    """

    name: str
    facts: Mapping[str, Any] | None
    wrong: Sequence[str] = ()
    clock: float | None = None
    gpus: float | None = None


def this_machine(folders: Mapping[str, str]) -> Patient:
    """The machine on which the command runs. folders: those to look at, by what the user calls them."""
    wrong = list(_open_token())
    for name, folder in folders.items():
        try:
            require_writable(Path(folder), name)
        except UserError as error:
            wrong.append(str(error))
    return Patient(HERE, node_facts(folders), wrong)


def cluster_nodes(address: str, out: Path | None) -> list[Patient]:
    """The nodes of the cluster whose job server is at `address`, which a job asks.

    out: the run directory that is meant; it and the cache beside it are looked at on every node. Raises UserError.
    """
    client = connect(address)
    command = ["python", "-m", "moe_dist.launch.doctor_job", *(["--out", str(out.absolute())] if out else [])]
    environment = job_environment(str(out.absolute()), RunPlace(out)) if out else {}
    job = ship(client, command, root=Path.cwd(), name="doctor", files={}, environment=environment)
    details = job.end()
    return read_answers(job.log().strip() or details.message or "")


def read_answers(log: str) -> list[Patient]:
    """The nodes, from the log of the doctor's job. Raises UserError if the job came to no answer."""
    lines = log.strip().splitlines()
    for line in reversed(lines):
        if line.startswith(MARK):
            return [Patient(**node) for node in json.loads(line.removeprefix(MARK))]
    raise UserError(f"the doctor's job came to no answer; its log ends with: {lines[-1] if lines else 'nothing'}")


def findings(patients: Sequence[Patient]) -> list[str]:
    """What is wrong, a sentence each; the first patient is the machine that the others are compared with."""
    first, *others = patients
    found = [f"{patient.name}: {sentence}" for patient in patients for sentence in _alone(patient)]
    for other in others:
        if first.facts and other.facts:
            found += [f"{other.name}: {sentence}" for sentence in _differences(first.facts, other.facts)]
    return found + list(_unequal_gpus(patients))


def facts_table(patients: Sequence[Patient]) -> Table:
    """A row for each machine."""
    disks = list(dict.fromkeys(disk for patient in patients if patient.facts for disk in patient.facts["free_bytes"]))
    header = ["", "Python", "Ray", "torch", "CUDA", "NCCL", "DeepSpeed", "GPUs", *(f"free, {disk}" for disk in disks)]
    return plain_table([*header, "open files", "clock"], [_row(patient, disks) for patient in patients])


def _row(patient: Patient, disks: Sequence[str]) -> list[str]:
    facts = patient.facts
    if facts is None:
        return [patient.name, "no answer", *[""] * (8 + len(disks))]
    packages, torch, free = facts["packages"], facts["torch"], facts["free_bytes"]
    return [
        patient.name,
        facts["python"],
        packages["ray"] or "-",
        packages["torch"] or "-",
        torch.get("cuda") or "-",
        torch.get("nccl") or "-",
        packages["deepspeed"] or "-",
        str(len(torch.get("gpus", []))),
        *(f"{free[disk] / 2**30:.0f} GiB" if disk in free else "-" for disk in disks),
        str(facts["open_files"]),
        "-" if patient.clock is None else f"{patient.clock:+.1f} s",
    ]


def _alone(patient: Patient) -> Iterator[str]:
    """What is wrong with a machine by itself."""
    yield from patient.wrong
    facts = patient.facts
    if facts is None:
        return
    if "error" in facts["torch"]:
        yield f"torch cannot be used: {facts['torch']['error']}"
    elif len(facts["torch"]["gpus"]) < facts["driver_gpus"]:
        built = f"for CUDA {facts['torch']['cuda']}" if facts["torch"]["cuda"] else "without CUDA"
        yield (
            f"torch, built {built}, sees {len(facts['torch']['gpus'])} of the driver's {facts['driver_gpus']} GPUs: "
            "install the build that fits the driver"
        )
    if patient.gpus is not None and patient.gpus < facts["driver_gpus"]:
        yield f"Ray offers {patient.gpus:g} of {facts['driver_gpus']} GPUs: start it with --num-gpus"
    if missing := [name for name, version in facts["packages"].items() if version is None]:
        yield f"not installed: {', '.join(missing)}: install moe_dist there with what it needs"
    for name, free in facts["free_bytes"].items():
        if free < LEAST_FREE_BYTES:
            yield f"{name} has {free / 2**30:.1f} GiB free: checkpoints and shards may fill it"
    if facts["open_files"] < LEAST_OPEN_FILES:
        yield f"a process may open {facts['open_files']} files: `ulimit -n 65536` before Ray is started"
    if patient.clock is not None and abs(patient.clock) > MOST_CLOCK_SECONDS:
        yield f"its clock is {abs(patient.clock):.1f} s {'ahead of' if patient.clock > 0 else 'behind'} the head's"


def _differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """How a node's versions differ from those of the first machine."""
    minor = [".".join(facts["python"].split(".")[:2]) for facts in (first, other)]
    if minor[0] != minor[1]:
        yield f"Python {other['python']}, and {first['python']} here: a job needs the same minor version"
    pairs = {name: (here, other["packages"].get(name)) for name, here in first["packages"].items()}
    unequal = [
        f"{name} {there} (here {here})" for name, (here, there) in pairs.items() if here and there and here != there
    ]
    if unequal:
        yield f"other versions than here: {', '.join(unequal)}; results may differ, and another Ray is refused"


def _unequal_gpus(patients: Sequence[Patient]) -> Iterator[str]:
    """What differs among the nodes with GPUs, which NCCL connects."""
    for kind in ("cuda", "nccl"):
        found: dict[str, list[str]] = {}
        for patient in patients:
            if patient.name != HERE and patient.facts and patient.facts["torch"].get("gpus"):
                found.setdefault(str(patient.facts["torch"][kind]), []).append(patient.name)
        if len(found) > 1:
            told = "; ".join(f"{version} on {', '.join(names)}" for version, names in found.items())
            yield f"{kind.upper()} is not the same on all nodes with GPUs: {told}"


def _open_token() -> Iterator[str]:
    """Whether others can read the file with this user's token."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return
    if mode & 0o077:
        yield f"{path}: others can read the token (mode {mode:04o}): {shlex.join(['chmod', '600', str(path)])}"
