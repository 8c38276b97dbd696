"""Statistics of shards: classes and their balance, images, bytes, sides.

Letters: C classes, n images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_dist.data.image.decode import image_size
from moe_dist.data.image.vectors import decode_vector, is_vector
from moe_dist.data.longtail import imbalance_factor, shot_groups
from moe_dist.data.shards.index import Index, read_index
from moe_dist.data.shards.inspect.check import require_readable, split_name, splits_at
from moe_dist.data.storage.store import join, local_file, shown
from moe_dist.errors import UserError
from moe_dist.settings.data import DEFAULT_REMOTE, RemoteConfig

LARGEST_SAMPLE = 1000
"""Most images whose sides are looked at."""


@dataclass(frozen=True)
class Sides:
    """Smallest, median and largest width and height in pixels of the `images` that were looked at.

    A vector of D numbers counts as D x 1.
    """

    images: int
    widths: tuple[int, int, int]
    heights: tuple[int, int, int]


@dataclass(frozen=True)
class SplitStats:
    """A split: its index, the images [C] of every class, the imbalance factor of those it has, bytes, images' sides."""

    name: str
    index: Index
    counts: np.ndarray
    imbalance: float
    bytes: int
    sides: Sides

    def in_words(self) -> dict[str, str]:
        """The numbers by title. Only the training split has many, medium and few classes."""
        present = self.counts[self.counts > 0]
        unlabelled = len(self.index.rows) - int(self.counts.sum())
        groups = shot_groups(self.counts) if self.name == "train" else {}
        return {
            "dataset": self.index.dataset,
            "images": f"{len(self.index.rows):,}" + (f" ({unlabelled:,} without a label)" if unlabelled else ""),
            "classes": f"{len(present):,}" + (f" of {len(self.counts):,}" if len(present) < len(self.counts) else ""),
            "largest, smallest class": f"{present.max():,}, {present.min():,}",
            "imbalance factor": f"{self.imbalance:.4g}",
            "many, medium, few": ", ".join(f"{len(classes):,}" for classes in groups.values()) or "-",
            "kinds": ", ".join(f"{count:,} {kind}" for kind, count in self.index.image_kinds.items()),
            "widths": ", ".join(map(str, self.sides.widths)),
            "heights": ", ".join(map(str, self.sides.heights)),
            "shards": f"{len(self.index.shards):,}, {self.bytes / 2**20:,.1f} MiB",
            "left out by repairs": f"{sum(len(samples) for samples in self.index.dropped.values()):,}",
            "split hash": self.index.digest[:16],
        }

    def headline(self) -> str:
        """The heading of the split's picture."""
        return (
            f"{self.index.dataset}, {self.name}: {len(self.index.rows):,} images of {len(self.counts):,} classes, "
            f"imbalance factor {self.imbalance:.4g}"
        )


def shard_stats(place: str | Path, remote: RemoteConfig = DEFAULT_REMOTE) -> list[SplitStats]:
    """The statistics of every split at `place` (a folder or URL of a split, or of train, val and test).

    Sides are read from the headers of the first shard's images, up to 1,000: shards are mixed when they are built.
    Raises UserError where an index or that shard cannot be read.
    """
    found = []
    for split in splits_at(place, remote):
        index = read_index(split, remote)
        counts = index.class_counts
        total = sum(shard.bytes for shard in index.shards)
        shard = join(split, index.shards[0].name)
        with local_file(shard, remote) as path:
            require_readable(path)
            sides = _sides(path, index.rows[index.rows["shard"] == 0][:LARGEST_SAMPLE], shown(shard))
        found.append(SplitStats(split_name(split), index, counts, imbalance_factor(counts[counts > 0]), total, sides))
    return found


def _sides(path: Path, rows: np.ndarray, where: str) -> Sides:
    """The sides of the images `rows` [n] of ROW of the shard at `path`, from their headers; `where` is for messages."""
    sizes = []
    with path.open("rb") as file:
        for row in rows:
            file.seek(int(row["offset"]))
            try:
                data = file.read(int(row["length"]))
                sizes.append((len(decode_vector(data)), 1) if is_vector(data) else image_size(data))
            except ValueError as error:
                raise UserError(
                    f"{where}: byte {row['offset']}: {error}; `moe-dist shards check` says all that is wrong"
                ) from None

    def spread(values: np.ndarray) -> tuple[int, int, int]:
        return int(values.min()), int(np.median(values)), int(values.max())

    widths, heights = np.array(sizes).T
    return Sides(len(sizes), spread(widths), spread(heights))
