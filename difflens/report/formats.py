"""A table of words for the terminal, for READMEs, for papers and for pages."""

import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from markupsafe import Markup
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

LATEX = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "→": r"$\rightarrow$",
    "×": r"$\times$",
    "\N{MINUS SIGN}": "$-$",
    "\N{EN DASH}": "--",
}

UNBOUNDED = 10_000
"""Columns of a terminal in which every table fits."""

FOLDED = 28
"""Characters; a column of words folds to so many before columns of numbers move below others."""

LONGEST_NUMBER = 24
"""Characters; what is longer is a sentence, which may fold."""


class Grid(NamedTuple):
    """A table: its header, its rows, how many of the last columns hold numbers, and what must be read with it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: int
    caption: str = ""

    def is_number(self, column: int) -> bool:
        """Whether the column holds numbers."""
        return column >= len(self.header) - self.numbers

    def terminal(self, title: str) -> "TerminalTable":
        """For `rich`; its last columns move below the first ones where the terminal is too narrow for all."""
        return TerminalTable(self, title)

    def markdown(self) -> str:
        """GitHub-flavoured Markdown."""
        rule = ["---:" if self.is_number(column) else "---" for column in range(len(self.header))]
        lines = [self.header, rule, *self.rows]
        table = "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
        return f"{table}\n{self.caption}\n" if self.caption else table

    def latex(self) -> str:
        """A `tabular` for the package booktabs; the caption is a comment above it."""
        columns = "".join("r" if self.is_number(column) else "l" for column in range(len(self.header)))
        head, *body = (" & ".join(map(latex_text, line)) + r" \\" for line in (self.header, *self.rows))
        above = [f"% {self.caption}"] if self.caption else []
        lines = [*above, rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
        return "\n".join([*lines, r"\end{tabular}", ""])

    def html(self) -> Markup:
        """A `<table>`; the cells of missing results say so to style sheets."""
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in self.header)
        lines = []
        for row in self.rows:
            cells = "".join(self._html_cell(column, cell) for column, cell in enumerate(row))
            lines.append(f"<tr>{cells}</tr>\n")
        caption = f"<caption>{escape(self.caption)}</caption>\n" if self.caption else ""
        return Markup(
            f"<table>\n{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(lines)}</tbody>\n</table>\n"
        )

    def _html_cell(self, column: int, cell: str) -> str:
        classes = ["number"] * self.is_number(column) + ["absent"] * (cell == "missing")
        return f'<td class="{" ".join(classes)}">{escape(cell)}</td>' if classes else f"<td>{escape(cell)}</td>"


class TerminalTable(NamedTuple):
    """A grid as wide as the terminal: no number is ever broken, the columns of words may fold."""

    grid: Grid
    title: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """One table, or several that repeat the columns of words."""
        yield Text(self.title, style="table.title")
        for block in self._blocks(console, options):
            yield Text()
            yield self._table(block)
        yield Text()
        if self.grid.caption:
            yield Text(self.grid.caption, style="table.caption")

    def _blocks(self, console: Console, options: ConsoleOptions) -> Iterator[list[int]]:
        """The columns of each table: those of words, and as many of numbers as the terminal is wide enough for."""
        columns = range(len(self.grid.header))
        words = [column for column in columns if not self.grid.is_number(column)]
        block = words
        for column in columns[len(words) :]:
            wider = Measurement.get(
                console, options.update_width(UNBOUNDED), self._table([*block, column], widest=FOLDED)
            )
            if wider.maximum > options.max_width and block != words:
                yield block
                block = words
            block = [*block, column]
        yield block

    def _table(self, block: Sequence[int], *, widest: int | None = None) -> Table:
        """These columns; `widest` bounds those of words."""
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column in block:
            name = self.grid.header[column]
            words = re.findall(r"\S+(?: [%↓↑])*", name)
            width = max(map(len, [*words, *(row[column] for row in self.grid.rows)]))
            if not self.grid.is_number(column):
                table.add_column(Text(name.replace(".", ".\n")), overflow="fold", max_width=widest)
            else:
                table.add_column(Text(name), justify="right", width=width if width <= LONGEST_NUMBER else None)
        for row in self.grid.rows:
            table.add_row(*(Text(row[column]) for column in block))
        return table


def latex_text(words: str) -> str:
    """Words with LaTeX's own signs escaped."""
    return "".join(LATEX.get(mark, mark) for mark in words)
