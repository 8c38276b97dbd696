"""A table of text cells as LaTeX, for a paper: a `table` of booktabs rules that needs no other package."""

from __future__ import annotations

from itertools import groupby

from moe_dist.plots.tables import Table

ESCAPED = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "†": r"\dag{}",
    "–": "--",
    "±": r"$\pm$",
    "[": "{[}",
    "]": "{]}",
}
"""What a character of a text is in LaTeX; brackets in braces, as one behind \\\\ would be read as a length."""


def to_latex(table: Table) -> str:
    """The table as a LaTeX `table` environment: title as the caption, groups over their columns, notes below."""
    align = "l" * (1 + len(table.columns)) if table.left else "l" + "r" * len(table.columns)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escaped(table.title)}}}", rf"\begin{{tabular}}{{{align}}}"]
    lines += [r"\toprule", *_head(table), r"\midrule"]
    for row in table.rows:
        lines += [r"\midrule"] if row.begins_section else []
        lines.append(_line([row.heading, *row.cells]))
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip\footnotesize {escaped(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}", ""])


def _head(table: Table) -> list[str]:
    """The line of column names, below a line of groups if there are any."""
    names = _line([table.corner, *(column.name for column in table.columns)])
    if not any(column.group for column in table.columns):
        return [names]
    cells, rules, place = [""], [], 2
    for group, columns in groupby(table.columns, key=lambda column: column.group):
        width = len(list(columns))
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escaped(group)}}}")
        rules.append(rf"\cmidrule(lr){{{place}-{place + width - 1}}}")
        place += width
    groups = " & ".join(cells) + r" \\"
    return [groups, " ".join(rules), names] if any(column.name for column in table.columns) else [groups]


def _line(cells: list[str]) -> str:
    return " & ".join(map(escaped, cells)) + r" \\"


def escaped(text: str) -> str:
    """The text as LaTeX prints it, on one line."""
    return "".join(ESCAPED.get(character, character) for character in " ".join(text.split()))
