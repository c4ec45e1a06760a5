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
    """A table: its header, its rows, how many of the last columns hold numbers, and what must be read with it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: int
    caption: str = ""

    def _is_number(self, column: int) -> bool:
        return column >= len(self.header) - self.numbers

    def terminal(self, title: str) -> Table:
        """For `rich`."""
        table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
        table.caption, table.caption_justify = Text(self.caption), "left"
        for column, name in enumerate(self.header):
            table.add_column(Text(name), justify="right" if self._is_number(column) else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def markdown(self) -> str:
        """GitHub-flavoured Markdown."""
        rule = ["---:" if self._is_number(column) else "---" for column in range(len(self.header))]
        lines = [self.header, rule, *self.rows]
        table = "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
        return f"{table}\n{self.caption}\n" if self.caption else table

    def latex(self) -> str:
        """A `tabular` for the package booktabs; the caption is a comment above it."""
        columns = "".join("r" if self._is_number(column) else "l" for column in range(len(self.header)))
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
        classes = ["number"] * self._is_number(column) + ["absent"] * (cell == "missing")
        return f'<td class="{" ".join(classes)}">{escape(cell)}</td>' if classes else f"<td>{escape(cell)}</td>"


def latex_text(words: str) -> str:
    """Words with LaTeX's own signs escaped."""
    return "".join(LATEX.get(mark, mark) for mark in words)
