"""The rows of predictions, as CSV, JSON lines or Parquet, printed or in a file that a killed command goes on with.

OUT                the rows, once all are there; until then OUT.part, which grows batch by batch (JSON lines of Parquet)
OUT.json           which model made them, how many rows and bytes are sure, and the score
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from moe_dist.errors import UserError
from moe_dist.files import flush_to_disk, read_json, write_json
from moe_dist.record.differences import differences

BEST = 5
"""Classes that a row has, the likeliest first."""
Format = Literal["csv", "json", "parquet"]
SURE_EVERY_SECONDS = 1.0
"""What a killed command may have to predict again."""


@dataclass(frozen=True)
class Row:
    """The prediction for one sample, or the reason why there is none.

    best: the likeliest classes with their probabilities. gates: the weights of experts by the gate's name. label: the
    true class, where it is known. rejected: whether the first probability is below the threshold.
    """

    image: str
    best: Sequence[tuple[str, float]] = ()
    gates: Mapping[str, Sequence[float]] = field(default_factory=dict)
    label: str | None = None
    reason: str | None = None
    rejected: bool = False

    @property
    def predicted(self) -> str | None:
        """The likeliest class, rejected or not."""
        return self.best[0][0] if self.best else None


class RowFormat(Protocol):
    """How rows are written and read."""

    def heading(self) -> str:
        """The text before the first row."""

    def text(self, row: Row) -> str:
        """A row with its end of line."""

    def read(self, file: IO[str]) -> Iterator[Row]:
        """The rows of a file, without gates and probabilities."""


class Packing(Protocol):
    """How a finished file of JSON lines is packed."""

    def pack(self, lines: Path, out: Path) -> None:
        """Write `out` from the rows in `lines`."""

    def unpack(self, out: Path, lines: Path) -> None:
        """Write `lines` from the rows in `out`."""


class CsvRows:
    """image,class,probability,class_2,probability_2,...,gate_0,...,label,reason,rejected."""

    def __init__(self, classes: int, gate_sizes: Mapping[str, int]) -> None:
        self._best = min(BEST, classes)
        self._gates = gate_sizes
        heads = {f"gate_{name}" if name else "gate": size for name, size in gate_sizes.items()}
        gates = [f"{head}_{expert}" for head, size in heads.items() for expert in range(size)]
        further = [f"{what}_{place}" for place in range(2, self._best + 1) for what in ("class", "probability")]
        self.columns = ["image", "class", "probability", *further, *gates, "label", "reason", "rejected"]

    def heading(self) -> str:
        """The names of the columns."""
        return _csv_line(self.columns)

    def text(self, row: Row) -> str:
        """A row; what is not known is empty."""
        best = [value for name, share in row.best for value in (name, f"{share:.6g}")]
        gates = [f"{weight:.6g}" for name in self._gates for weight in row.gates.get(name, ())]
        missing = [""] * (len(self.columns) - 4 - len(best) - len(gates))
        return _csv_line([row.image, *best, *gates, *missing, row.label or "", row.reason or "", "yes" * row.rejected])

    def read(self, file: IO[str]) -> Iterator[Row]:
        """The rows of a file."""
        for line in csv.DictReader(file):
            best = [(line["class"], float(line["probability"]))] if line["class"] else []
            yield Row(line["image"], best, {}, line["label"] or None, line["reason"] or None, line["rejected"] == "yes")


class JsonRows:
    """One JSON object a line: image, class, probability, best, gates, label, reason, rejected."""

    def heading(self) -> str:
        """Nothing."""
        return ""

    def text(self, row: Row) -> str:
        """A row."""
        content = asdict(row)
        name, share = row.best[0] if row.best else (None, None)
        return json.dumps({"image": content.pop("image"), "class": name, "probability": share, **content}) + "\n"

    def read(self, file: IO[str]) -> Iterator[Row]:
        """The rows of a file."""
        for line in file:
            content = json.loads(line)
            best, label, reason = content["best"], content["label"], content["reason"]
            yield Row(content["image"], best, {}, label, reason, content["rejected"])


def _csv_line(values: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


class ShownRows:
    """Rows on standard output."""

    def __init__(self, form: RowFormat) -> None:
        self._form = form
        self.before: Iterator[Row] = iter(())
        sys.stdout.write(form.heading())

    def add(self, rows: Sequence[Row]) -> None:
        """Print rows."""
        sys.stdout.write("".join(map(self._form.text, rows)))
        sys.stdout.flush()

    def finish(self, score: Mapping[str, Any]) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        """Nothing is held open."""


class KeptRows:
    """Rows in the file `out`, to which a command that was killed and is given again adds those that are missing.

    made_by: the model and the settings on which rows depend. packing: how the finished file is packed, None where it is
    the rows as they were added. Raises UserError where the file is of something else, or another command writes to it.
    """

    def __init__(self, out: Path, form: RowFormat, made_by: Mapping[str, Any], packing: Packing | None = None) -> None:
        self._out, self._form, self._made_by, self._packing = out, form, dict(made_by), packing
        self._part, self._about = out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.json")
        out.parent.mkdir(parents=True, exist_ok=True)
        self._lock = locked(out.with_name(f".{out.name}.lock"), out)
        kept = self._kept()
        if not kept:
            self._note(0)  # before there is a file, so that whoever finds one finds whose it is
        if out.exists() and packing is not None:
            packing.unpack(out, self._part)
            kept = self._part.stat().st_size
            self._note(kept)
            out.unlink()
        elif out.exists():
            os.replace(out, self._part)
        with self._part.open("ab") as file:
            file.truncate(kept)
        if not kept:
            self._append(form.heading())
        self._pending: list[Row] = []
        self._sure_at = time.monotonic()

    @property
    def before(self) -> Iterator[Row]:
        """The rows that the file has from earlier commands."""
        with self._part.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield from self._form.read(file)

    def add(self, rows: Sequence[Row]) -> None:
        """Keep rows; they are sure on the disk a second later at the latest."""
        self._pending += rows
        if time.monotonic() - self._sure_at >= SURE_EVERY_SECONDS:
            self._append("".join(map(self._form.text, self._pending)))
            self._pending, self._sure_at = [], time.monotonic()

    def finish(self, score: Mapping[str, Any]) -> None:
        """All rows are there: give the file its name."""
        self._append("".join(map(self._form.text, self._pending)), score)
        if self._packing is None:
            os.replace(self._part, self._out)
        else:
            self._packing.pack(self._part, self._out)
            self._part.unlink()
        flush_to_disk(self._out.parent)

    def close(self) -> None:
        """Let other commands write to the file."""
        self._lock.close()

    def _append(self, text: str, score: Mapping[str, Any] | None = None) -> None:
        """Write to the file, and then that it was written: what a kill cuts short in between is cut off again."""
        with self._part.open("ab") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            os.fsync(file.fileno())
            kept = file.tell()
        self._note(kept, score)

    def _note(self, kept: int, score: Mapping[str, Any] | None = None) -> None:
        about = {"made_by": self._made_by, "bytes": kept, "finished": score is not None, "score": score}
        write_json(self._about, about)

    def _kept(self) -> int:
        """The bytes that earlier commands made sure of."""
        about, there = read_json(self._about), self._out if self._out.exists() else self._part
        packed = self._packing is not None and there == self._out
        if about is None and there.exists():
            raise UserError(f"{there}: is not of `moe-dist predict`; choose another --out, or remove it")
        if about is None:
            return 0
        if changed := differences(about["made_by"], self._made_by):
            raise UserError(
                f"--out {self._out}: has rows of another model or setting ({'; '.join(changed)}); choose another file"
            )
        if about["bytes"] and (not there.exists() or (there.stat().st_size < about["bytes"] and not packed)):
            raise UserError(f"{there}: has lost rows that were in it; remove it and {self._about.name} to begin anew")
        return about["bytes"]


def locked(path: Path, out: Path) -> IO[str]:
    """The file `path`, locked for this process until it is closed. Raises UserError where another process has it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise UserError(
            f"--out {out}: another moe-dist predict writes there; wait for it, or name another file"
        ) from None
    except OSError:  # a file system without locks
        pass
    return file


def format_of(name: Format, classes: int, gate_sizes: Mapping[str, int]) -> RowFormat:
    """The format in which rows are added, for a model of that many classes and experts."""
    return CsvRows(classes, gate_sizes) if name == "csv" else JsonRows()
