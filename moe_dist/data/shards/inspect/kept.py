"""Which images of a class a long tail kept, told where a user may not expect it."""

from __future__ import annotations

from moe_dist.data.shards.index import Index


def how_images_were_kept(train: Index, asked: str) -> list[str]:
    """A sentence where the training split was cut to a long tail in an order that is not known to be shuffled.

    asked: the choice as the user has it: that "auto" drew is told, that "random" did was asked for.
    """
    if train.long_tail is None or train.shuffled:
        return []
    if train.long_tail.choice == "first":
        return [
            "imbalance_choice = first: a class keeps its first images in the order of their names or lists, which is a "
            "fair draw only where that order is a shuffled one; auto draws them"
        ]
    if asked != "auto":
        return []
    return [
        f"a class of the long tail keeps images that were drawn by imbalance_seed = {train.long_tail.seed}: nothing is "
        "known of a shuffled order of the source, and first images by name are often of one kind"
    ]
