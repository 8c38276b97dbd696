"""The `moe-dist shards` commands: build, list, check, stats."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from moe_dist.disk import raising_disk_errors
from moe_dist.errors import UserError
from moe_dist.paths import typed
from moe_dist.terminal import console, plain_facts, plain_table, say, say_table, short


class BuildByDefault(typer.core.TyperGroup):
    """`shards SOURCE OUT` means `shards build SOURCE OUT`, unless SOURCE is the name of a command, as `check`."""

    def resolve_command(self, context: Any, args: list[str]) -> Any:
        """The named command, or `build` if the first word is a dataset. Raises UserError if it is neither."""
        if args[0] in self.commands:
            return super().resolve_command(context, args)
        from moe_dist.data.datasets.catalog import DATASETS

        if args[0] not in DATASETS:
            raise UserError(
                f"shards {args[0]}: neither a command ({', '.join(sorted(self.commands))}) nor a dataset "
                f"({', '.join(sorted(DATASETS))})"
            )
        return super().resolve_command(context, ["build", *args])


class ImbalanceChoice(StrEnum):
    """The images that a class of a long tail keeps."""

    auto = "auto"
    first = "first"
    random = "random"


shards = typer.Typer(cls=BuildByDefault, no_args_is_help=True, help="Build, check, describe and list shards.")
ShardsPlace = Annotated[str, typer.Argument(metavar="DIR|URL", help="Shards: a split, or train, val and test.")]


@shards.command("build")
def build(
    dataset: Annotated[str, typer.Argument(metavar="SOURCE", help="A dataset of the catalogue.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or URL that gets train/, test/ and perhaps val/.")],
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="The downloaded dataset: a folder, tar, .zip or .tar.gz.",
            parser=typed("--from", "download the dataset (only its shards may be a URL)"),
        ),
    ] = None,
    imbalance: Annotated[float | None, typer.Option(min=1, help="Long-tailed form of this imbalance factor.")] = None,
    imbalance_choice: Annotated[
        ImbalanceChoice,
        typer.Option(help="Images a class keeps: its first, random ones, or by the source's order (CIFAR's pickles)."),
    ] = ImbalanceChoice.auto,
    imbalance_seed: Annotated[int, typer.Option(min=0, help="Seed that draws the random ones.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Shards written at a time; above 1 on Ray.")] = 1,
    short_side: Annotated[int | None, typer.Option(min=8, help="Shrink images to this short side, as JPEGs.")] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Quality of those JPEGs.")] = 90,
    samples_per_shard: Annotated[int, typer.Option(min=1, help="Images in a shard.")] = 4096,
) -> None:
    """Build the shards of a dataset. A build that was broken off goes on by the same command."""
    from moe_dist.data.longtail import LongTail
    from moe_dist.data.shards.build.build import build_shards
    from moe_dist.data.shards.index import Shrink
    from moe_dist.data.shards.inspect.kept import how_images_were_kept
    from moe_dist.data.shards.inspect.repeated import repeated_images
    from moe_dist.data.storage.store import is_url
    from moe_dist.places import cache_folder
    from moe_dist.ray_address import cluster_address
    from moe_dist.terminal import Show

    if workers > 1:
        cluster_address()  # before the source is read
    progress = Show(console)
    folder = cache_folder() if is_url(out) else Path(out).absolute()
    full = raising_disk_errors(folder, "the shards", "give the command again, which goes on where it stood")
    with full, progress.working(f"shards of {dataset}"):
        indexes = build_shards(
            dataset,
            source,
            out,
            long_tail=None if imbalance is None else LongTail(imbalance, imbalance_choice.value, imbalance_seed),
            shrink=None if short_side is None else Shrink(short_side, quality),
            samples_per_shard=samples_per_shard,
            workers=workers,
            cache=cache_folder(),
            on_progress=progress.shards,
        )
    for split, index in indexes.items():
        content = f"{len(index.rows):,} images in {_number(len(index.shards), 'shard')}"
        say(console, f"{split}: {content}, split hash {index.digest}")
    for sentence in [*how_images_were_kept(indexes["train"], imbalance_choice.value), *repeated_images(out)]:
        progress.notice(sentence)
    say(console, f"shards: {_place(out)}")


@shards.command("list")
def list_datasets() -> None:
    """List the datasets a job can name, where to get them, what is read and checked, and the shards in the cache."""
    from moe_dist.data.datasets.catalog import DATASETS
    from moe_dist.data.shards.inspect.inventory import cached_shards
    from moe_dist.data.storage.store import is_url, shown
    from moe_dist.places import shared_cache

    shared = shared_cache()
    cached = [] if is_url(shared) else cached_shards(Path(shared))
    if is_url(shared):
        say(console, f"{shown(shared)}: shards there are not listed\n")
    for entry in DATASETS.values():
        states = [one.state.partition(":")[0] for one in cached if one.dataset == entry.name]
        facts = {
            "what": entry.title,
            "images": _counts(entry.expected) or "any number",
            "licence": entry.licence,
            "get": entry.where,
            "read": entry.reads,
            "checked": entry.checked,
            "order": entry.order,
            "shards": ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states))) or "none",
        }
        say(console, (entry.name, "bold"))
        say_table(console, plain_facts({title: text for title, text in facts.items() if text}))
        say(console)
    for one in cached:
        counts = f" ({_counts(one.counts)})" if one.counts else ""
        say(console, f"{short(one.folder)}: {one.state}{counts}")


@shards.command("check")
def check(
    place: ShardsPlace,
    repair: Annotated[bool, typer.Option("--repair", help="Drop what is bad in a new index; shards stay.")] = False,
) -> None:
    """Read every shard and print what is wrong, and where."""
    from moe_dist.data.shards.inspect.check import check_shards
    from moe_dist.data.shards.inspect.repair import repair_shards

    for repaired in repair_shards(place) if repair else []:
        _print_lines(repaired.reasons)
        dropped = _number(repaired.dropped, "sample")
        say(console, f"{short(repaired.folder)}: {dropped} dropped, {repaired.kept:,} kept")
    problems = check_shards(place)
    _print_lines(problems)
    say(console, f"{_place(place)}: {_number(len(problems), 'problem') if problems else 'all shards are whole'}")
    raise typer.Exit(1 if problems else 0)


@shards.command("stats")
def stats(
    place: ShardsPlace,
    plot: Annotated[
        Path | None,
        typer.Option(help="The picture's file. Default: DIR/stats.png.", parser=typed("--plot", "name a file")),
    ] = None,
) -> None:
    """Describe shards: classes, their balance, images, bytes, sides; with a picture of the class profile."""
    from moe_dist.data.shards.inspect.stats import shard_stats
    from moe_dist.data.storage.store import is_url
    from moe_dist.plots.profile import save_class_profile

    if plot is None and is_url(place):
        raise UserError(f"{_place(place)}: a picture cannot be put beside these shards; name its file with --plot")
    splits = shard_stats(place)
    described = [split.in_words() for split in splits]
    rows = [[title, *(words[title] for words in described)] for title in described[0]]
    say_table(console, plain_table(["", *(split.name for split in splits)], rows))
    say(console, f"widths and heights: smallest, median, largest of {splits[0].sides.images:,} images")
    path = plot or Path(place) / "stats.png"
    save_class_profile(path, splits[0].headline(), splits[0].counts)
    say(console, f"picture: {short(path.absolute())}")


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        say(console, line)


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in counts.items())


def _place(place: str) -> str:
    """A folder as one would type it in the current directory, or a URL without the secrets in it."""
    from moe_dist.data.storage.store import is_url, shown

    return shown(place) if is_url(place) else short(Path(place).absolute())
