"""A saved figure as a part of a page: its SVG in the page's own colours, so that a dark page has dark figures."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

from moe_dist.files import file_sha256
from moe_dist.plots.drawing import Picture
from moe_dist.plots.style import COLOURS, GRID, INK, MUTED

THEME = {INK: "ink", MUTED: "muted", GRID: "line", "#ffffff": "card"} | {
    colour: f"colour-{number}" for number, colour in enumerate(COLOURS) if colour != INK
}
"""Colour of a figure -> the variable of page.css that takes its place."""
HALF = 0.65
"""A figure of at most this share of the width stands beside another one."""
_COLOUR = re.compile("|".join(THEME))
_LEFT_OUT = re.compile(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL)
_BOX = re.compile(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>')
_NAME = re.compile(r' id="([^"]*)"')
_NAMED = re.compile(r'(xlink:href="#|url\(#)([^")]*)')


def figure_html(picture: Picture, number: int) -> str:
    """The figure as HTML: <figure> with the SVG and its caption. number: of the figure on the page, from 1."""
    svg = _inline(picture.path.read_text(encoding="utf-8"), f"f{number}-")
    about = f'role="img" aria-label="{escape(picture.heading)}" aria-describedby="caption-{number}"'
    svg = _BOX.sub(lambda box: f'<svg {about} viewBox="{box[1]}">', svg, count=1)
    return (
        f'<figure class="{"half" if picture.width <= HALF else "whole"}" {_mark(picture.path)}>'
        f'<div class="drawing">{svg}</div>\n'
        f'<figcaption id="caption-{number}">{escape(picture.caption)}</figcaption></figure>'
    )


def remove_outdated(page: Path, folder: Path, pictures: Sequence[Picture]) -> None:
    """Remove the figures in `folder` that the report at `page` shows, if there is one, and that are not of `pictures`.

    A file of another name or content than what the page shows is somebody else's, and stays.
    """
    if not page.is_file():
        return
    shown, now = page.read_text(encoding="utf-8", errors="replace"), {picture.path for picture in pictures}
    for path in {*folder.glob("*.svg"), *folder.glob("*.png")} - now:
        if path.is_file() and _is_shown(path, shown, now):
            path.unlink()


def _is_shown(path: Path, page: str, now: set[Path]) -> bool:
    if path.suffix == ".png":  # in pages from before figures were SVG, which hold the file itself, and not its name
        return path.with_suffix(".svg") in now and f'base64,{b64encode(path.read_bytes()).decode()}"' in page
    return _mark(path) in page


def _mark(path: Path) -> str:
    """What a page says of the file of a figure, to know it again."""
    return f'data-file="{escape(path.name)}" data-sha256="{file_sha256(path)}"'


def _inline(svg: str, prefix: str) -> str:
    """The <svg> element of a file by matplotlib, its colours by name, its ids under `prefix` as far as they are used.

    Without comments, which repeat texts, and without styles, which would hold for the whole page.
    """
    svg = _LEFT_OUT.sub("", svg[svg.index("<svg") :])
    used = {name for _, name in _NAMED.findall(svg)}
    svg = _NAME.sub(lambda found: f' id="{prefix}{found[1]}"' if found[1] in used else "", svg)
    svg = _NAMED.sub(lambda found: f"{found[1]}{prefix}{found[2]}", svg)
    return _COLOUR.sub(lambda colour: f"var(--{THEME[colour[0]]})", svg)
