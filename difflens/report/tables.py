"""Tables for the terminal, READMEs, papers and pages; and the summary of metrics.json, one column per method."""

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

from difflens.report.measures import NONE, count, interval, largest_possible, measures_of, method_name, number, percent
from difflens.report.run_folder import Json, marked, rows_of, unvalidated

LATEX = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "→": r"$\rightarrow$", "×": r"$\times$"},
    **{"\N{MINUS SIGN}": "$-$", "\N{EN DASH}": "--"},
}

UNBOUNDED = 10_000
"""Columns of a terminal in which every table fits."""
FOLDED = 28
"""Characters; a column of words folds to so many before columns of numbers move below others."""
LONGEST_NUMBER = 24
"""Characters; what is longer is a sentence, which may fold."""
ON_A_SHEET = 8
"""Columns of numbers that fit beside each other on a printed sheet."""


class Grid(NamedTuple):
    """A table: its header, its rows, how many of the last columns hold numbers, and what must be read with it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: int
    caption: str = ""

    @property
    def words(self) -> int:
        """How many of the first columns hold words."""
        return len(self.header) - self.numbers

    def terminal(self, title: str) -> "TerminalTable":
        """For `rich`; its last columns move below the first ones where the terminal is too narrow for all."""
        return TerminalTable(self, title)

    def markdown(self) -> str:
        """GitHub-flavoured Markdown."""
        rule = ["---"] * self.words + ["---:"] * self.numbers
        lines = [self.header, rule, *self.rows]
        # An unescaped bar would begin a new column.
        table = "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
        return f"{table}\n{self.caption}\n" if self.caption else table

    def latex(self) -> str:
        """A `tabular` for the package booktabs; the caption is a comment above it."""
        head, *body = (" & ".join(map(latex_text, line)) + r" \\" for line in (self.header, *self.rows))
        above = [f"% {self.caption}"] if self.caption else []
        begin = rf"\begin{{tabular}}{{{'l' * self.words}{'r' * self.numbers}}}"
        lines = [*above, begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""]
        return "\n".join(lines)

    def html(self) -> Markup:
        """A `<table>` for every `ON_A_SHEET` columns of numbers; missing results say so to style sheets."""
        # One block at least, also for a table without numbers.
        starts = range(self.words, max(len(self.header), self.words + 1), ON_A_SHEET)
        blocks = [[*range(self.words), *range(start, len(self.header))[:ON_A_SHEET]] for start in starts]
        captions = [f"<caption>{escape(self.caption)}</caption>\n" if self.caption else "", *[""] * len(blocks)]
        return Markup("".join(self._html_table(*each) for each in zip(blocks, captions, strict=False)))

    def _html_table(self, columns: Sequence[int], caption: str) -> str:
        head = "".join(f'<th scope="col">{escape(self.header[column])}</th>' for column in columns)
        body = "".join(f"<tr>{''.join(self._html_cell(column, row) for column in columns)}</tr>\n" for row in self.rows)
        return f"<table>\n{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n"

    def _html_cell(self, column: int, row: Sequence[str]) -> str:
        classes = " ".join(["number"] * (column >= self.words) + ["absent"] * (row[column] == "missing"))
        about = f' class="{classes}"' if classes else ""
        return f"<td{about}>{escape(row[column])}</td>"


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
        unbounded, words = options.update_width(UNBOUNDED), [*range(self.grid.words)]
        block = words
        for column in range(self.grid.words, len(self.grid.header)):
            # Measured with room for everything: within the real width rich would already have folded the numbers.
            width = Measurement.get(console, unbounded, self._table([*block, column], widest=FOLDED)).maximum
            # A terminal too narrow for even one column of numbers gets that one nevertheless.
            if width > options.max_width and block != words:
                yield block
                block = words
            block = [*block, column]
        yield block

    def _table(self, block: Sequence[int], *, widest: int | None = None) -> Table:
        """These columns; `widest` bounds those of words."""
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column in block:
            name = self.grid.header[column]
            if column < self.grid.words:
                # A `Text`, since rich reads brackets in a plain string as markup; dotted keys fold behind their dots.
                table.add_column(Text(name.replace(".", ".\n")), overflow="fold", max_width=widest)
            else:
                # Headings fold between words, but a sign or an arrow stays with the word before it.
                cells = [*re.findall(r"\S+(?: [%↓↑])*", name), *(row[column] for row in self.grid.rows)]
                width = max(map(len, cells))
                # A fixed width, for rich would shrink all columns alike and break numbers over two lines.
                table.add_column(Text(name), justify="right", width=width if width <= LONGEST_NUMBER else None)
        for row in self.grid.rows:
            table.add_row(*(Text(row[column]) for column in block))
        return table


def latex_text(words: str) -> str:
    """Words with LaTeX's own signs escaped."""
    # Sign by sign: one replacement after the other would escape what the one before has put in.
    return "".join(LATEX.get(mark, mark) for mark in words)


class Line(NamedTuple):
    """One line of the summary: a label, a cell per method, and what it means."""

    label: str
    cells: tuple[str, ...]
    meaning: str


def summary_lines(metrics: Json) -> list[Line]:
    """What at least one method has, in reading order: every measure, each family followed by what explains it."""
    rows = rows_of(metrics)
    lines = [
        (measure.family, Line(measure.heading, tuple(map(measure.cell, rows)), largest_possible(measure, rows)))
        for measure in measures_of(metrics)
    ]
    for family, explain in EXPLANATIONS:
        of_family = [place for place, (other, _) in enumerate(lines) if other == family]
        place = of_family[-1] + 1 if of_family else len(lines)
        # A line of nothing but dashes explains nothing.
        lines[place:place] = [
            (family, line) for line in explain(metrics, rows) if set("".join(line.cells)) - {*f"{NONE} /"}
        ]
    return [line for _, line in lines]


def summary_grid(metrics: Json) -> Grid:
    """The summary: a line per measure, a column per method, and the protocol below."""
    header = ["measure", *map(method_name, rows_of(metrics))]
    rows = [[line.label, *line.cells] for line in summary_lines(metrics)]
    return Grid(header, rows, numbers=len(header) - 1, caption=protocol_sentence(metrics))


def summary_table(metrics: Json, *, about: str = "") -> TerminalTable:
    """The summary for a terminal; `about` is added to its title."""
    return summary_grid(metrics).terminal(" · ".join(filter(None, (_title(metrics), about))))


def summary_markdown(metrics: Json) -> str:
    """The summary as a GitHub-flavoured Markdown table with a title and the protocol."""
    return f"**{_title(metrics)}**\n\n{summary_grid(metrics).markdown()}"


def protocol_sentence(metrics: Json) -> str:
    """Under which conditions the numbers hold: judge, extractor, reference, steps, seed."""
    protocol = dict(metrics.get("protocol") or {})
    reference = protocol.pop("reference", None)
    words = [f"{key.replace('_', ' ')} {value}" for key, value in protocol.items() if value is not None]
    if isinstance(reference, dict):
        sha256 = str(reference.get("sha256", ""))[:12]
        words.append(f"reference {reference.get('name', '?')}, n {reference.get('n', '?')}, sha256 {sha256 or NONE}")
    return " · ".join(words)


def _title(metrics: Json) -> str:
    n = metrics.get("n")
    attribute = marked(str(metrics.get("attribute", "attribute")), unvalidated(metrics))
    words = [attribute, str(metrics.get("model", "model"))]
    return " · ".join([*words, count(n, "image")] if isinstance(n, int) else words)


def inside(row: Json, group: str, name: str) -> Json:
    """What a row has under a name of one of its groups; empty if it has nothing."""
    found: Json = (row.get(group) or {}).get(name) or {}
    return found


def names_in(rows: Sequence[Json], group: str) -> list[str]:
    """The names that any row has in one of its groups, such as the attributes of `leakage`."""
    return list(dict.fromkeys(name for row in rows for name in row.get(group) or {}))


def _parts(_: Json, rows: Sequence[Json]) -> Iterator[Line]:
    for group, meaning in (("prompts", "of these images"), ("parts", "of this attribute")):
        for name in names_in(rows, group):
            cells = (number(inside(row, group, name).get("fd_hard"), 3) for row in rows)
            yield Line(f"FD hard, {name}", tuple(cells), meaning)


def _shares(metrics: Json, rows: Sequence[Json]) -> Iterator[Line]:
    target = metrics.get("target") or {}
    for name in metrics.get("classes") or target:
        goal = f" (target {percent(target[name], 0)})" if name in target else ""
        cells = (interval(inside(row, "shares", name)) for row in rows)
        yield Line(f"{name}{goal}", tuple(cells), "share of the images, with its 95 % Wilson interval")


def _flips(metrics: Json, rows: Sequence[Json]) -> Iterator[Line]:
    for name in names_in(rows, "leakage"):
        flips = [inside(row, "leakage", name) for row in rows]
        cells = (
            f"{percent(of.get('flip_rate'))} / {percent(of.get('flip_rate_edited'))}" if of else NONE for of in flips
        )
        meaning = f"images whose {name} changed although only {metrics.get('attribute', 'another attribute')} should"
        yield Line(f"leakage into {marked(name, unvalidated(metrics))}, all / edited", tuple(cells), meaning)


def _others(_: Json, rows: Sequence[Json]) -> Iterator[Line]:
    cells = (
        ", ".join(
            f"{number(of.get('images'), 0)} ({percent(of.get('share'))})" for of in (row.get("other") or {}).values()
        )
        for row in rows
    )
    meaning = "whose likeliest class is none of the above; FD is measured among those"
    yield Line("images of other classes", tuple(cell or NONE for cell in cells), meaning)


EXPLANATIONS = (("fd", _parts), ("fd", _shares), ("clip", _flips), ("reached", _others))
"""What stands behind the last measure of a family, or else at the end."""
