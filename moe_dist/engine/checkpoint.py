"""Checkpoints that any number of ranks can read: dense files, two files for each expert, and state.json, written last.

    dense.safetensors                   parameters and buffers outside the experts        written by rank 0
    dense.optimiser.safetensors         optimiser state, as <parameter>/<moment or step>  rank 0
    experts_0007.safetensors            expert 7 of the group `experts`                   the first rank that holds it
    experts_0007.optimiser.safetensors  its optimiser state                               the same rank
    arrays.safetensors                  arrays of all samples, by name                    rank 0
    random_0002.safetensors             the random generators of rank 2                   rank 2
    state.json                          the loop's state; size and sha256 of each file    rank 0, last

The files do not depend on the layout (ranks, expert parallelism, ZeRO stage), so any layout can read them. Nothing is
pickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moe_dist.engine.engine import Engine, ParameterState
from moe_dist.engine.optimisers import state_keys
from moe_dist.errors import UserError
from moe_dist.files import file_sha256, flush_to_disk, write_json

FORMAT = 2
"""Version of state.json; version 1 had the sizes of files without their digests."""
DENSE = "dense"
ARRAYS = "arrays.safetensors"
STATE = "state.json"
"""Written last: without it there is no checkpoint."""
RANDOM = "random_{:04d}.safetensors"
GeneratorState = dict[str, Tensor]
"""The states of the random generators of torch, CUDA (if there is a GPU), NumPy and Python, by name."""
_OPTIMISER = ".optimiser.safetensors"
_EXPERT = re.compile(r"(?P<group>.+)\.members\.(?P<expert>\d+)\.")


def save_checkpoint(
    folder: Path,
    engine: Engine,
    *,
    rank: int,
    ranks: int,
    state: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write this rank's part of a checkpoint into `folder`. Collective.

    state: the loop's own state, as JSON values. arrays: the loop's own arrays, the same on every rank.

    The ranks may share one folder, or have a folder each that is merged afterwards: no two ranks write the same file.
    Buffers that differ between replicas are set to the first replica's values. Gradients of an unfinished accumulation
    are not saved, so call this between updates.
    """
    engine.synchronise_buffers()
    contents = {f"{stem}.safetensors": tensors for stem, tensors in _by_file(engine.network.state_dict()).items()}
    moments = {
        f"{name}/{key}": tensor for name, kept in engine.optimiser_state().items() for key, tensor in kept.items()
    }
    contents |= {f"{stem}{_OPTIMISER}": tensors for stem, tensors in _by_file(moments).items()}
    # Dense files are written by rank 0, those of experts by the first ranks, which together hold each expert once.
    mine = {
        name: tensors
        for name, tensors in contents.items()
        if rank < (1 if name.startswith(f"{DENSE}.") else engine.expert_ranks)
    }
    mine[RANDOM.format(rank)] = random_state()
    if rank == 0 and arrays:
        mine[ARRAYS] = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, Any]] = {}
    for name, tensors in mine.items():
        path = folder / name
        # copied, because safetensors refuses views of shared memory, such as the parameters of ZeRO
        save_file({key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}, path)
        flush_to_disk(path)
        files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    if ranks > 1:
        parts: list[Any] = [None] * ranks
        torch.distributed.all_gather_object(parts, files)  # returns when every rank has written its files
        files = {name: about for part in parts for name, about in part.items()}
    if rank == 0:
        write_json(folder / STATE, {"format": FORMAT, "world": ranks, "files": files, "state": dict(state)})


def load_checkpoint(folder: Path, engine: Engine, *, rank: int, ranks: int) -> dict[str, Any]:
    """Load the network, its optimiser and the random generators from `folder`, and return the loop's state.

    The checkpoint may have been saved with another number of ranks, expert parallelism or ZeRO stage. With the same
    layout the training continues bit by bit as if it had not stopped. If the number of ranks differs, the random
    generators of rank r are seeded from (the saved state, r).

    Raises UserError if the checkpoint is not whole, or belongs to another network or optimiser.
    """
    content = _read_content(folder)
    _load_network(folder, engine.network)
    engine.load_optimiser_state(_optimiser_state(folder, engine))
    if content["world"] == ranks:
        restore_random_state(_read(folder / RANDOM.format(rank)))
    else:
        seed_random(_read(folder / RANDOM.format(0))["torch"].numpy().tobytes(), rank)
    return content["state"]


def load_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays that the loop saved, by name. Raises UserError if the checkpoint is not whole."""
    if ARRAYS not in _read_content(folder)["files"]:
        return {}
    return {name: values.numpy() for name, values in _read(folder / ARRAYS).items()}


def load_weights(folder: Path, network: nn.Module) -> None:
    """Load only the parameters and buffers, into a network that one process holds.

    Raises UserError if the checkpoint is not whole, or belongs to another network.
    """
    _read_content(folder)
    _load_network(folder, network)


def weight_files(folder: Path) -> dict[str, str]:
    """The files of parameters and buffers, by name, with their sha256. Raises UserError if it is not whole."""
    files = _read_content(folder)["files"]
    return {
        name: about["sha256"] or file_sha256(folder / name)
        for name, about in sorted(files.items())
        if not (name == ARRAYS or name.endswith(_OPTIMISER) or name.startswith("random_"))
    }


def read_state(folder: Path) -> dict[str, Any]:
    """The state that the loop saved. Raises UserError if the checkpoint is not whole."""
    return _read_content(folder)["state"]


def is_whole(folder: Path) -> bool:
    """Whether `folder` holds a checkpoint with all its files, each of its full size."""
    return _whole_content(folder) is not None


def damaged_file(folder: Path) -> str | None:
    """The first file of a whole checkpoint that differs from its sha256, or None. Reads every file."""
    for name, about in _read_content(folder)["files"].items():
        if about["sha256"] and file_sha256(folder / name) != about["sha256"]:
            return name
    return None


def random_state() -> GeneratorState:
    """The state of the global generators of this process."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, next_gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy.keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy.rest": torch.tensor([position, has_gauss, gauss], dtype=torch.float64),
        "python.words": torch.tensor([version, *words], dtype=torch.int64),
        "python.gauss": torch.tensor([math.nan if next_gauss is None else next_gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: GeneratorState) -> None:
    """Set the generators to a state that `random_state` returned."""
    torch.set_rng_state(state["torch"])
    position, has_gauss, gauss = state["numpy.rest"].tolist()
    keys = state["numpy.keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), gauss))
    version, *words = state["python.words"].tolist()
    next_gauss = float(state["python.gauss"])
    random.setstate((version, tuple(words), None if math.isnan(next_gauss) else next_gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_random(origin: bytes, rank: int) -> None:
    """Seed the generators from `origin` (a job's seed, a saved generator), differently on each rank."""
    digest = hashlib.sha256(origin + rank.to_bytes(8, "little")).digest()
    seed = int.from_bytes(digest[:4], "little")
    torch.manual_seed(seed)  # every device's
    np.random.seed(seed)
    random.seed(seed)


def whole_content(text: str, size_of: Callable[[str], int | None]) -> dict[str, Any] | None:
    """What state.json says, if each file that it lists has its size; else None. size_of: the bytes of a file, by name.

    Each file has its size in bytes and its sha256, None in format 1.
    """
    try:
        content = json.loads(text)
        if content["format"] == 1:
            content["files"] = {name: {"bytes": size, "sha256": None} for name, size in content["files"].items()}
        whole = all(size_of(name) == about["bytes"] for name, about in content["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return content if whole else None


def _whole_content(folder: Path) -> dict[str, Any] | None:
    """state.json of a whole checkpoint in `folder`, else None."""
    try:
        text = (folder / STATE).read_text()
    except (OSError, ValueError):
        return None
    return whole_content(text, lambda name: (folder / name).stat().st_size)


def _read_content(folder: Path) -> dict[str, Any]:
    """state.json of a whole checkpoint. Raises UserError for any other folder."""
    content = _whole_content(folder)
    if content is None:
        raise UserError(f"{folder}: not a whole checkpoint (state.json or a file it lists is missing or cut short)")
    if content["format"] > FORMAT:
        raise UserError(f"{folder}: written by a later version of moe-dist (format {content['format']}, not {FORMAT})")
    return content


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _load_network(folder: Path, network: nn.Module) -> None:
    """Load the dense parameters and the experts that this process holds."""
    wanted = network.state_dict()
    found: dict[str, Tensor] = {}
    for stem in _by_file(wanted):
        found |= _read(folder / f"{stem}.safetensors")
    unlike = sorted(name for name in wanted.keys() | found.keys() if _shape(wanted, name) != _shape(found, name))
    if unlike:
        name = unlike[0]
        raise UserError(
            f"{folder}: belongs to another network: {name} is {_shape(found, name)} there and {_shape(wanted, name)} "
            f"here ({len(unlike)} differences); resume with the configuration it was trained with"
        )
    network.load_state_dict(found)


def _optimiser_state(folder: Path, engine: Engine) -> ParameterState:
    """The saved optimiser state of the parameters that this process trains; without tensors before the first step."""
    entries: dict[str, Tensor] = {}
    for stem in _by_file(engine.configs):
        path = folder / f"{stem}{_OPTIMISER}"
        entries |= _read(path) if path.is_file() else {}
    state: ParameterState = {name: {} for name in engine.configs}
    for entry, tensor in entries.items():
        name, _, key = entry.rpartition("/")
        if name in state:
            state[name][key] = tensor
    for name, config in engine.configs.items():
        if state[name].keys() != (state_keys(config) if entries else set()):
            raise UserError(
                f"{folder}: {name} was trained with another optimiser ({', '.join(state[name]) or 'none'} saved); "
                f"resume with the configuration it was trained with"
            )
    return state


def _by_file(named: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Named tensors, grouped by the stem of their file: `dense`, or `<group>_<expert>`."""
    files: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in named.items():
        match = _EXPERT.match(name)
        stem = f"{match['group']}_{int(match['expert']):04d}" if match else DENSE
        files[stem][name] = value
    return files


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    return f"[{', '.join(map(str, tensors[name].shape))}]" if name in tensors else "absent"
