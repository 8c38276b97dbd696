"""Images that cannot be used: the first one ends the run, or they are left out, noted and counted, as the job says.

A rank, its loader processes and tasks on other nodes all meet bad samples. Each process notes those that it met in a
file of its own, in one folder of the run directory. The run met the union of these files, which its limit counts.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from moe_dist.errors import UserError


class BadSample(UserError):
    """An image that cannot be read or decoded: the sentence names its shard, its key and the reason."""


class BadSamples:
    """The bad samples that a process has met. The run ends when it met more than `limit`; None: at the first one."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._met: set[str] = set()
        self._folder: Path | None = None

    def take(self, problem: BadSample) -> None:
        """Note `problem`. Raises it where no bad sample is allowed, UserError where there are more than the limit."""
        if self._limit is None:
            raise problem
        sentence = " ".join(str(problem).split())
        if sentence in self._met:
            return
        self._met.add(sentence)
        self._write([sentence])
        if (count := len(self.sentences())) > self._limit:
            raise UserError(
                f"{count} bad samples are more than data.bad_samples_limit = {self._limit} allows (the last one: "
                f"{sentence}); look at them with `moe-dist shards check`, or raise the limit"
            )

    def write_to(self, folder: Path) -> None:
        """Write what was met so far, and from now on, to `folder`, which need not exist yet."""
        self._folder = folder
        self._write(sorted(self._met))

    def sentences(self) -> list[str]:
        """One sentence for each bad sample that this process or another one of the run has met, sorted."""
        return sorted(self._met.union(read_bad_samples(self._folder) if self._folder else ()))

    def _write(self, sentences: list[str]) -> None:
        if self._folder is None or not sentences:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{platform.node()}-{os.getpid()}.txt").open("a", encoding="utf-8") as file:
            file.writelines(f"{sentence}\n" for sentence in sentences)


NONE_ALLOWED = BadSamples(limit=None)


def require_readable(images: float, split: str) -> None:
    """Raise UserError where no image of `split` could be read; images: how many of them could."""
    if not images:
        raise UserError(
            f"no image of the {split} split can be read or decoded; look at its shards with `moe-dist shards check`"
        )


def read_bad_samples(folder: Path) -> list[str]:
    """The bad samples that the processes of a run noted in `folder`, each once, sorted."""
    texts = (path.read_text(encoding="utf-8") for path in folder.glob("*.txt"))
    return sorted({line for text in texts for line in text.splitlines()})
