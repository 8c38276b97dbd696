"""Where a run directory is: in a folder, or at a URL with a working folder of this node."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moe_dist.data.storage.locks import in_turn, locked
from moe_dist.data.storage.store import exists, join, require_store, shown, stored_files
from moe_dist.errors import UserError
from moe_dist.files import read_json
from moe_dist.paths import is_url, typed
from moe_dist.places import RECORD, RUNNING, cache_folder
from moe_dist.record.mirror import CHECKPOINTS, Mirror, of_a_grid, of_the_driver, working_folder
from moe_dist.terminal import Show

FOR_RUNS = "give a folder, or a URL with two slashes (on a cluster, a place that every node reaches)"


@dataclass(frozen=True)
class RunPlace:
    """A run directory: the folder in which this node works on it, and its URL, if it is not that folder itself."""

    folder: Path
    url: str | None = None

    def __str__(self) -> str:
        return str(self.folder) if self.url is None else shown(self.url)

    @property
    def holds_a_run(self) -> bool:
        """Whether a run has begun there. Raises UserError where a store does not say."""
        job = "job.yaml"
        return (self.folder / job).exists() if self.url is None else exists(join(self.url, job))

    @contextmanager
    def at_hand(self, *without: str, mine: Callable[[str], bool] = of_the_driver) -> Iterator[Mirror | None]:
        """Give the block the mirror of a run at a URL, whose files are in the folder then; None for a folder.

        without: names of folders that are not fetched; mine: which files the mirror keeps. Raises UserError where
        another process of this node is at work in the run, or the store fails.
        """
        if self.url is None:
            yield None
            return
        try:
            with locked(self.folder.with_name(f".{self.folder.name}.lock"), wait=False):
                mirror = Mirror(self.folder, self.url, mine)
                mirror.pull(exact=True, without=without)
                yield mirror
        except BlockingIOError:
            raise UserError(
                f"{self}: another moe-dist of this machine is at work in this run; wait until it is done, or end it"
            ) from None

    def fetched(self, *without: str) -> Path:
        """The folder of the run; files of one at a URL have been fetched, by one process of this node at a time.

        without: names of folders that are not fetched. Raises UserError where nothing is at the URL, and as `at_hand`.
        """
        if self.url is not None:
            with in_turn(self.folder.with_name(f".{self.folder.name}.turn")), self.at_hand(*without) as mirror:
                if mirror is not None and not mirror.holds_files:
                    raise UserError(f"{self}: nothing is there; `moe-dist runs list URL` shows the runs below a URL")
        return self.folder

    @contextmanager
    def kept(self, show: Show, *, grid: bool = False) -> Iterator[Mirror | None]:
        """Give the block the mirror of a run at a URL, which keeps it there from now on; None for a folder.

        grid: whether it is that of a grid, whose cells keep their own, and fetch their own checkpoints.
        """
        with self.at_hand(CHECKPOINTS, mine=of_a_grid) if grid else self.at_hand() as mirror:
            if mirror is None:
                yield None
                return
            self._tell_of_another(show)
            with mirror.keeping(show.notice):
                yield mirror

    def _tell_of_another(self, show: Show) -> None:
        """Tell the user if another machine may be at work in the run: a store has no locks."""
        record = read_json(self.folder / RECORD) or {}
        started = record.get("starts", [{}])[-1]
        if record.get("status") == RUNNING and started.get("host") not in (None, socket.gethostname()):
            show.notice(
                f"{self}: was begun on {started['host']} and has not ended there; make sure that it does not go on"
            )


def run_place(what: str) -> Callable[[str], RunPlace]:
    """A function that parses the place of a run that a user types for `what`; it raises UserError for any other."""

    def place(text: str) -> RunPlace:
        if not is_url(text):
            return RunPlace(typed(what, FOR_RUNS)(text))
        url = text.rstrip("/")
        if shown(url) != url:  # it would be in run.json, in the cluster's list of jobs and in logs
            raise UserError(f"{what} {shown(url)}: leave out user, password and query; credentials are set outside")
        try:
            require_store(url)
        except UserError as error:
            raise UserError(f"{what} {error}") from None
        return RunPlace(working_folder(url, cache_folder()), url)

    return place


def require_free(place: RunPlace) -> None:
    """Raise UserError if there are files at the place's URL, which holds no run."""
    if place.url is not None and stored_files(place.url):
        raise UserError(f"--out {place}: is not empty and holds no run; choose another URL")


def require_run(place: RunPlace, what: str) -> None:
    """Raise UserError for a URL at which no run is; what is to be a folder is looked at where it is read."""
    if place.url and not place.holds_a_run:
        raise UserError(f"{what} {place}: no run is there; `moe-dist runs list URL` shows the runs below a URL")
