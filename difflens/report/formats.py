"""A table of words for the terminal, for READMEs, for papers and for pages."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from markupsafe import Markup
from rich import box
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


class Grid(NamedTuple):
    """A table: its header, its rows, and how many of the last columns hold numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: int

    def _is_number(self, column: int) -> bool:
        return column >= len(self.header) - self.numbers

    def terminal(self, title: str) -> Table:
        """For `rich`."""
        table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
        for column, name in enumerate(self.header):
            table.add_column(Text(name), justify="right" if self._is_number(column) else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def markdown(self) -> str:
        """GitHub-flavoured Markdown."""
        rule = ["---:" if self._is_number(column) else "---" for column in range(len(self.header))]
        lines = [self.header, rule, *self.rows]
        return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)

    def latex(self) -> str:
        """A `tabular` for the package booktabs."""
        columns = "".join("r" if self._is_number(column) else "l" for column in range(len(self.header)))
        head, *body = (" & ".join(map(latex_text, line)) + r" \\" for line in (self.header, *self.rows))
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
        return "\n".join([*lines, r"\end{tabular}", ""])

    def html(self) -> Markup:
        """A `<table>`; the cells of missing results say so to style sheets."""
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in self.header)
        lines = []
        for row in self.rows:
            cells = "".join(self._html_cell(column, cell) for column, cell in enumerate(row))
            lines.append(f"<tr>{cells}</tr>\n")
        return Markup(f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(lines)}</tbody>\n</table>\n")

    def _html_cell(self, column: int, cell: str) -> str:
        classes = ["number"] * self._is_number(column) + ["absent"] * (cell == "missing")
        return f'<td class="{" ".join(classes)}">{escape(cell)}</td>' if classes else f"<td>{escape(cell)}</td>"


def latex_text(words: str) -> str:
    """Words with LaTeX's own signs escaped."""
    return "".join(LATEX.get(mark, mark) for mark in words)
