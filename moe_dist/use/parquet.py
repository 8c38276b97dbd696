"""Rows of predictions as a Parquet file, made of JSON lines when all are there: a Parquet file cannot be added to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from moe_dist.errors import UserError
from moe_dist.files import whole_file

GROUP = 20_000
"""Rows that are in memory at once, and in a row group of the file."""


class ParquetFile:
    """Columns image, class, probability, best (class, probability), a list of weights for each gate, label, reason,
    rejected.

    gates: the names of the model's gates. Raises UserError where pyarrow is not installed.
    """

    def __init__(self, gates: Sequence[str]) -> None:
        try:
            import pyarrow as arrow
        except ImportError:
            raise UserError("--format parquet needs pyarrow: pip install pyarrow") from None
        self._gates = {name: f"gate_{name}" if name else "gate" for name in gates}
        best = arrow.list_(arrow.struct([("class", arrow.string()), ("probability", arrow.float64())]))
        self._schema = arrow.schema(
            [
                ("image", arrow.string()),
                ("class", arrow.string()),
                ("probability", arrow.float64()),
                ("best", best),
                *((column, arrow.list_(arrow.float64())) for column in self._gates.values()),
                ("label", arrow.string()),
                ("reason", arrow.string()),
                ("rejected", arrow.bool_()),
            ]
        )

    def pack(self, lines: Path, out: Path) -> None:
        """Write the Parquet file `out` from the JSON lines in `lines`."""
        import pyarrow as arrow
        from pyarrow.parquet import ParquetWriter

        with (
            whole_file(out) as partial,
            ParquetWriter(partial, self._schema) as writer,
            lines.open(encoding="utf-8", errors="surrogateescape") as file,
        ):
            while part := [self._columns(json.loads(line)) for line in islice(file, GROUP)]:
                writer.write_table(arrow.Table.from_pylist(part, schema=self._schema))

    def unpack(self, out: Path, lines: Path) -> None:
        """Write the JSON lines `lines` from the Parquet file `out`. Raises UserError where it cannot be read."""
        with whole_file(lines) as partial, partial.open("w", encoding="utf-8") as file:
            for row in self._rows(out):
                file.write(json.dumps(row) + "\n")

    def _columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of JSON as columns."""
        best = [{"class": name, "probability": share} for name, share in row["best"]]
        gates = {column: row["gates"].get(name) for name, column in self._gates.items()}
        kept = {name: row[name] for name in ("image", "class", "probability", "label", "reason", "rejected")}
        return kept | {"best": best} | gates

    def _rows(self, out: Path) -> Iterator[dict[str, Any]]:
        """The rows of JSON that a Parquet file was made of."""
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile as Opened

        try:
            for part in Opened(out).iter_batches(GROUP):
                for row in part.to_pylist():
                    best = [[entry["class"], entry["probability"]] for entry in row.pop("best")]
                    gates = {name: row.pop(column) for name, column in self._gates.items()}
                    yield row | {"best": best, "gates": {name: own for name, own in gates.items() if own is not None}}
        except (ArrowException, OSError) as error:
            raise UserError(
                f"{out}: is not the Parquet file that was written ({error}); choose another --out"
            ) from None
