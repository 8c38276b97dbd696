"""A page of one file, for runs and for grids: headline, sections, look, and the few lines that sort its tables.

It opens without a network, and its content policy allows nothing but what it holds. Whoever gives text escapes it.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from importlib.resources import files
from string import Template

from moe_dist import __version__
from moe_dist.plots.tables import sentence_html


@dataclass(frozen=True)
class Section:
    """A part of a page: its anchor, its title, and its content as HTML."""

    name: str
    title: str
    content: str


def whole_page(title: str, kind: str, headline: str, sections: Sequence[Section]) -> str:
    """The page as HTML. title and kind: plain text; headline: HTML below the title; sections without content go."""
    shown = [section for section in sections if section.content]
    script = _file("page.js")
    return Template(_file("page.html")).substitute(
        title=escape(title),
        kind=escape(kind),
        css=_file("page.css"),
        script=script,
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
        headline=headline,
        links="\n".join(f'<a href="#{section.name}">{escape(section.title)}</a>' for section in shown),
        sections="\n".join(map(_section, shown)),
        version=escape(__version__),
    )


def _file(name: str) -> str:
    return (files("moe_dist.report") / name).read_text(encoding="utf-8")


def _section(section: Section) -> str:
    return f'<section id="{section.name}">\n<h2>{escape(section.title)}</h2>\n{section.content}\n</section>'


def facts_html(facts: Mapping[str, str]) -> str:
    """A list of facts by their names; the facts are HTML."""
    return '<dl class="facts">' + "".join(f"<dt>{name}</dt><dd>{fact}</dd>" for name, fact in facts.items()) + "</dl>"


def folded(summary: str, content: str) -> str:
    """Content that opens by a click on its summary; it is closed on paper, too."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{content}\n</details>"


def listed(sentences: Sequence[str], kind: str = "notes") -> str:
    """Sentences of plain text as a list; nothing if there are none."""
    if not sentences:
        return ""
    return f'<ul class="{kind}">' + "".join(f"<li>{sentence_html(sentence)}</li>" for sentence in sentences) + "</ul>"


def link(address: str, text: str) -> str:
    """A link to what lies beside the page."""
    return f'<a href="{escape(address)}">{escape(text)}</a>'
