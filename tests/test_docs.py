"""README and the pages: commands are the command's own, links lead somewhere, and every page is in the site."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from moe_dist.cli import app
from moe_dist.data.datasets.catalog import DATASETS
from moe_dist.errors import UserError
from moe_dist.job import load_job
from moe_dist.shipped import shipped

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
BLOCK = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
SPAN = re.compile(r"`(moe-dist [^`]+)`")
LINK = re.compile(r"\[[^\]\n]+\]\(([^)\s]+)\)")
HERE = re.compile(r"(?:jobs|cluster|benchmarks|tests)/\S+\.(?:yaml|py|set)")
"""Files of the repository that a command names."""
LAUNCHED = ("run", "show", "submit")
LEFT_BY_RUNS = ("init_from=", "{labels: ")
"""Settings that name what another run left, which is looked for when the job is loaded."""


def commands(page: Path) -> Iterator[list[str]]:
    """The words behind `moe-dist` of every command on a page, in blocks and in the text; alternatives `a|b` each."""
    text = page.read_text()
    lines = [line for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    lines += [" ".join(span.split()) for span in SPAN.findall(BLOCK.sub("", text))]
    for line in lines:
        for command in re.split(r"&& |;", line):
            found = re.match(r"\s*(?:\$ )?moe-dist (.*)", command)
            if found:
                optional = re.sub(r"\[(-[^\]]*)\]", r"\1", found[1])  # [--out DIR]
                words = [word for word in shlex.split(optional, comments=True) if word not in ("...", "&")]
                yield from alternatives(words)


def alternatives(words: list[str]) -> Iterator[list[str]]:
    place = next((place for place, word in enumerate(words) if re.fullmatch(r"\w+(\|\w+)+", word)), None)
    if place is None:
        yield words
    else:
        for one in words[place].split("|"):
            yield from alternatives([*words[:place], one, *words[place + 1 :]])


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The subcommand and its options, as the command's own parser reads them. Raises click's errors."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("moe-dist", [], resilient_parsing=True)
    name = ""
    while hasattr(command, "commands"):
        options, rest, _ = command.make_parser(context).parse_args(list(words))
        words = rest
        if not words:
            return name, options
        if name == "shards" and (words[0] in (*DATASETS, "DATASET", "flowers")):  # flowers: of docs/new_dataset.md
            words = ["build", *words]
        assert words[0] in command.commands, f"moe-dist has no command {words[0]!r}"
        name, command = words[0], command.commands[words[0]]
        context, words = command.context_class(command, info_name=name, parent=context), words[1:]
    options, rest, _ = command.make_parser(context).parse_args(list(words))
    for parameter in command.params:
        choices = getattr(getattr(parameter, "type", None), "choices", None)
        given = options.get(parameter.name)
        assert not choices or given is None or given.isupper() or given in map(str, choices), f"{given}: no choice"
    return name, options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_one_that_there_is(page: Path) -> None:
    wrong = []
    for words in commands(page):
        try:
            parsed(words)
        except Exception as error:
            wrong.append(f"moe-dist {shlex.join(words)}: {error}")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_job_of_a_command_is_there_and_takes_its_settings(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    wrong = []
    for words in commands(page):
        name, options = parsed(words)
        job = options.get("job_file")
        if name not in LAUNCHED or job is None or not (job in shipped() or HERE.fullmatch(job)) or job == "jobs/x.yaml":
            continue
        given = options.get("overrides") or []
        settings = [setting for setting in given if not any(word in setting for word in LEFT_BY_RUNS)]
        try:
            load_job(shipped().get(job) or ROOT / job, [one for one in settings if one != "a.b=c"])
        except UserError as error:
            wrong.append(f"moe-dist {shlex.join(words)}: {error}")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_block_names_is_there(page: Path) -> None:
    named = {name for block in BLOCK.findall(page.read_text()) for name in HERE.findall(block)}
    assert {name for name in named if not (ROOT / name).exists()} <= {"jobs/x.yaml"}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(re.sub(r"`[^`]*`", "", BLOCK.sub("", page.read_text()))):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        place = page.parent / target if target else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(link)
        if page.parent == DOCS and place.resolve().parent != DOCS:
            broken.append(f"{link} (outside of what the site holds)")
    assert broken == []


def test_every_page_is_in_the_site_once_and_readme_names_it() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    def pages(entries: Any) -> Iterator[str]:
        for entry in entries:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else pages(value)

    listed = list(pages(settings["nav"]))
    assert sorted(listed) == [page.name for page in sorted(DOCS.glob("*.md"))]
    readme = (ROOT / "README.md").read_text()
    assert [name for name in listed if f"(docs/{name})" not in readme] == []


def test_what_the_reference_names_is_there() -> None:
    from importlib import import_module

    for name in re.findall(r"^::: (\S+)", (DOCS / "reference.md").read_text(), re.MULTILINE):
        module, _, member = name.rpartition(".")
        parent = import_module(module)
        found = getattr(parent, member, None) or import_module(name)
        assert found.__doc__, f"{name} has no docstring"


def test_a_wrong_command_is_seen() -> None:
    for words, said in (("shwo demo", "no command 'shwo'"), ("run demo --lancher local", "--lancher")):
        with pytest.raises(Exception, match=said):
            parsed(words.split())
    assert [*alternatives(["runs", "list|show"])] == [["runs", "list"], ["runs", "show"]]
