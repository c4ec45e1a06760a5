"""The style of all figures: colours, text that stays text, and SVG, inline in a page or as a file."""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that people with any colour vision can tell apart (Okabe and Ito, 2008)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Shapes that repeat what colours say, for print without colour."""
INK, FAINT, EDITED, UNTOUCHED = "#1f2933", "#8a94a0", "#D55E00", "#c9ced6"

Draw = Callable[[Figure], None]

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9,
    "grid.color": "#e6e9ed",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "difflens",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
"""Class names are text, never formulae, and equal data give equal files."""


def class_styles(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Colour and marker per class, the same in every figure of a report; 49 differ in one or the other."""
    return {name: {"color": OKABE_ITO[i % 7], "marker": MARKERS[(i + i // 7) % 7]} for i, name in enumerate(names)}


@contextmanager
def drawn(draw: Draw, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure of a size in inches, in the report's style while it is saved."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        yield figure


def inline_svg(draw: Draw, size: tuple[float, float], *, name: str, label: str) -> Markup:
    """A figure as an `<svg>` element.

    Args:
        draw: draws on an empty figure.
        size: width and height in inches.
        name: prefix of the element's ids, unique in the page: marks of one figure must not be taken for another's.
        label: what the figure shows, for readers who do not see it.
    """
    stream = io.StringIO()
    with drawn(draw, size) as figure:
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = re.sub(r'\b(id="|xlink:href="#|url\(#)', lambda match: f"{match[1]}{name}-", text[text.index("<svg") :])
    width = round(size[0] * 96)
    root = f'<svg role="img" aria-label="{escape(label)}" style="width:100%;max-width:{width}px;height:auto"'
    head, _, body = text.partition(">")
    return Markup(root + re.sub(r' (width|height)="[^"]*"|<svg', "", head) + ">" + body)


def save_plot(
    folder: Path, name: str, draw: Callable[[Figure, Any], None], data: Any, size: tuple[float, float]
) -> Path:
    """Write `<name>.svg` into the run folder, drawn from what `<name>.json` holds; sizes are in inches."""
    path = folder / f"{name}.svg"
    with drawn(lambda figure: draw(figure, data), size) as figure:
        figure.savefig(path, metadata={"Date": None})
    return path


def series(values: Sequence[float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers to plot, with gaps where nothing was measured."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def steps_axis(axes: Axes) -> None:
    """Name the horizontal axis as denoising steps, which are whole numbers."""
    axes.set_xlabel("denoising step (0 = noisiest)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
