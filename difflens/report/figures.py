"""Everything that is drawn of a run, a sweep or an experiment, each from plain data on an empty figure."""

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from difflens.report.measures import FD, WORST_LEAKAGE, Measure, fairness, measures_of, method_name, number, prices
from difflens.report.run_folder import Json

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that people with any colour vision can tell apart (Okabe and Ito, 2008)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Shapes that repeat what colours say, for print without colour."""
INK, FAINT, EDITED, UNTOUCHED = "#1f2933", "#8a94a0", "#D55E00", "#c9ced6"

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
    # Letters stay text, which can be searched and read aloud.
    "svg.fonttype": "none",
    # By itself matplotlib draws the ids in a file at random.
    "svg.hashsalt": "difflens",
    "text.color": INK,
    # A `$` in a name would begin a formula.
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
"""Class names are text, never formulae, and equal data give equal files."""


def class_styles(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Colour and marker per class, the same in every figure of a report; 49 differ in one or the other."""
    # After every seven names the shapes move on by one against the colours.
    return {name: {"color": OKABE_ITO[i % 7], "marker": MARKERS[(i + i // 7) % 7]} for i, name in enumerate(names)}


@contextmanager
def drawn(draw: Callable[..., None], size: tuple[float, float], **data: Any) -> Iterator[Figure]:
    """A figure of a size in inches, in the report's style while it is saved."""
    # Around the saving too: fonts and how SVG is written are read only then.
    with matplotlib.rc_context(STYLE):
        # Without pyplot, which keeps every figure it made alive and looks for a window.
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, **data)
        yield figure


def inline_svg(draw: Callable[..., None], size: tuple[float, float], *, name: str, label: str, **data: Any) -> Markup:
    """A figure as an `<svg>` element.

    Args:
        draw: draws `data` on an empty figure.
        size: width and height in inches.
        name: prefix of the element's ids, unique in the page: marks of one figure must not be taken for another's.
        label: what the figure shows, for readers who do not see it.
        data: passed on to `draw`.
    """
    stream = io.StringIO()
    with drawn(draw, size, **data) as figure:
        # Without a date, or no two pages of one run would be equal.
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    # What stands before the element, an XML declaration and a document type, has no place inside a page.
    text = re.sub(r'\b(id="|xlink:href="#|url\(#)', lambda match: f"{match[1]}{name}-", text[text.index("<svg") :])
    # CSS counts 96 pixels to the inch.
    width = round(size[0] * 96)
    root = f'<svg role="img" aria-label="{escape(label)}" style="width:100%;max-width:{width}px;height:auto"'
    # Without a width and height of its own the figure shrinks with a narrow page, by its view box.
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


SUPERSCRIPTS = str.maketrans("-0123456789", "\N{SUPERSCRIPT MINUS}⁰¹²³⁴⁵⁶⁷⁸⁹")
CHANCE: dict[str, Any] = {"color": INK, "ls": "--", "lw": 1.1}
"""How the level is drawn that chance or the target gives."""


def inner(rows: Sequence[Json | None], *path: str) -> Any:
    """A number of every row that lies as deep as the path is long, with gaps where a row lacks it."""
    found: list[Any] = list(rows)
    for key in path:
        found = [(row or {}).get(key) for row in found]
    return series(found)


def rows_down(axes: Axes, names: Sequence[str]) -> Any:
    """A line for each name, the first on top; returns their heights."""
    # matplotlib counts upwards, readers downwards.
    heights = np.arange(len(names))[::-1].astype(float)
    axes.set_yticks(heights, list(names))
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="y")
    return heights


def draw_shares(figure: Figure, rows: Sequence[Json], *, classes: Sequence[str], target: Mapping[str, float]) -> None:
    """Share of every class by every method, with intervals and a line at the target."""
    axes = figure.subplots()
    heights = rows_down(axes, classes)
    for name, height in zip(classes, heights, strict=True):
        if name in target:
            label = "target" if name == classes[0] else None
            axes.plot([100 * target[name]] * 2, [height - 0.42, height + 0.42], **CHANCE, label=label)
    # Methods stand beside each other around their class's line, and never reach the next class's.
    reach = min(0.38, 0.09 * len(rows)) if len(rows) > 1 else 0.0
    edited = [str(row.get("method")) for row in rows if row.get("method") != "original"]
    styles = {**class_styles(["", *edited]), "original": {"color": FAINT, "marker": "o", "markerfacecolor": "white"}}
    for row, offset in zip(rows, np.linspace(reach, -reach, len(rows)), strict=True):
        shares = [(row.get("shares") or {}).get(name) for name in classes]
        middle, low, high = (100 * inner(shares, key) for key in ("share", "low", "high"))
        # matplotlib refuses negative lengths, and rounding may give them where an interval ends at the share itself.
        error = np.nan_to_num(np.stack([middle - low, high - middle])).clip(0)
        style = {"capsize": 3, "markersize": 7, "ls": "", **styles[str(row.get("method"))]}
        axes.errorbar(middle, heights + offset, xerr=error, label=method_name(row), **style)  # type: ignore[arg-type]
    axes.set(xlim=(-3, 103), xlabel="share of images (%)")
    figure.legend(loc="outside upper left", ncols=3)


def draw_leakage(figure: Figure, leakage: Json) -> None:
    """How many images changed in each other attribute: of all, and of those that were edited."""
    axes = figure.subplots()
    heights = rows_down(axes, list(leakage))
    for key, offset, label, color, hatch in (
        ("flip_rate", 0.2, "of all images", OKABE_ITO[0], ""),
        ("flip_rate_edited", -0.2, "of the edited images", OKABE_ITO[4], "///"),
    ):
        rates = 100 * inner([*leakage.values()], key)
        # Hatched beside coloured, for print without colour.
        style: dict[str, Any] = {"color": color, "hatch": hatch, "edgecolor": "white", "label": label}
        # A rate that was not measured has no bar, and a dash in place of a number, or it would pass for 0.
        shown = axes.barh(heights + offset, np.nan_to_num(rates), 0.36, **style)
        axes.bar_label(shown, [number(rate, 1) for rate in rates.tolist()], padding=3, fontsize=8)
    axes.set(xlabel="images whose class changed (%)", xlim=(0, max(1.0, 1.12 * axes.dataLim.xmax)))
    figure.legend(loc="outside upper left", ncols=2)


def draw_dose(figure: Figure, dose: Json, *, classes: Sequence[str], target: Mapping[str, float]) -> None:
    """Success and shares against strength, with the chosen strengths.

    A class that no image was pushed towards answers to the strengths of the others: its share stands over the strength
    of the class that was pushed furthest.
    """
    points, styles = dose.get("points") or [], class_styles(classes)
    strength, success, shares = (
        {name: inner(points, key, name) for name in classes} for key in ("strength", "success", "shares")
    )
    pushed = [name for name in classes if not np.isnan(success[name]).all()]
    lead = max(pushed or classes, key=lambda name: float(np.nan_to_num(strength[name]).max(initial=0)))
    left, right = figure.subplots(1, 2)
    for name in classes:
        own = strength[name if name in pushed else lead]
        # A search tries strengths as it comes to them; a curve goes from weak to strong.
        order = np.argsort(own, kind="stable")
        right.plot(own[order], 100 * shares[name][order], label=name, **styles[name])
        if name in pushed:
            left.plot(own[order], 100 * success[name][order], label=name, **styles[name])
    for name in pushed:
        if (value := (dose.get("chosen") or {}).get(name)) is not None:
            for axes, label in ((left, f"chosen for {name}: {number(value, 2)}"), (right, None)):
                axes.axvline(value, color=styles[name]["color"], ls=":", lw=1.8, label=label)
    for goal in sorted(set(target.values())):
        right.axhline(100 * goal, **CHANCE)
    left.set(title="images that show the class asked for", xlabel="strength", ylabel="%", ylim=(-4, 104))
    right.set(title="share of all images (dashed: target)", xlabel="strength", ylim=(-4, 104))
    entries = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in (right, left)]
    # Once for both panels, which share most classes.
    handles = {label: handle for panel in entries for handle, label in panel}
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=4)


def draw_sae_steps(figure: Figure, sae: Json) -> None:
    """Reconstruction at every denoising step: fraction of variance unexplained, and denoising loss recovered."""
    curves = (
        ("fraction of variance unexplained", sae.get("fvu_per_step"), 0.0, OKABE_ITO[1]),
        ("denoising loss recovered", sae.get("loss_recovered_per_step"), 1.0, OKABE_ITO[0]),
    )
    there = [curve for curve in curves if curve[1]]
    panels = figure.subplots(1, len(there), squeeze=False)[0]
    for axes, (title, values, perfect, color) in zip(panels, there, strict=True):
        axes.plot(series(values or []), color=color, marker="o", markersize=3)
        # Only the loss recovered comes with an interval, and its perfect value is not 0.
        low, high = (sae.get(f"loss_recovered_{end}_per_step") if perfect else None for end in ("low", "high"))
        if low and high:
            axes.fill_between(range(len(low)), series(low), series(high), color=color, alpha=0.2, lw=0)
        axes.axhline(perfect, color=FAINT, ls="--", lw=1)
        axes.set(title=title)
        axes.margins(y=0.15)
        steps_axis(axes)


def draw_density(figure: Figure, density: Json) -> None:
    """How often latents fire: a histogram over powers of ten, of edges in log10 or as plain shares."""
    axes = figure.subplots()
    edges, counts = series(density["edges"]), series(density["counts"])
    # Logarithms of shares are negative, shares are not; a share of 0 has no logarithm.
    powers_of_ten = edges if edges.min() < 0 else np.log10(edges.clip(1e-9))
    axes.stairs(counts, powers_of_ten, fill=True, color=OKABE_ITO[2])
    axes.set(xlabel="share of tokens on which a latent fires", ylabel="latents")
    powers = range(math.ceil(powers_of_ten.min()), math.floor(powers_of_ten.max()) + 1)
    axes.set_xticks(powers, [f"10{str(power).translate(SUPERSCRIPTS)}" if power else "1" for power in powers])


def draw_probe(figure: Figure, probe: Json) -> None:
    """Held-out accuracy of the probe at every denoising step, against chance."""
    axes = figure.subplots()
    axes.plot(100 * series(probe["accuracy_per_step"]), color=OKABE_ITO[0], marker="o", label="probe, held-out images")
    if probe.get("chance") is not None:
        axes.axhline(100 * probe["chance"], **CHANCE, label="chance")
    axes.set(ylabel="accuracy (%)", ylim=(0, 104))
    axes.legend(loc="lower right")
    steps_axis(axes)


def draw_feature(figure: Figure, feature: Json, *, classes: Sequence[str]) -> None:
    """One latent over the denoising steps: its attribution score, and its activation on images of each class."""
    left, right = figure.subplots(1, 2)
    styles = class_styles(classes)
    own = styles.get(str(feature.get("class")), {"color": OKABE_ITO[0]})["color"]
    scores = series(feature.get("score_per_step") or [])
    left.axhline(0, color=FAINT, lw=1)
    left.plot(scores, color=own)
    left.fill_between(np.arange(len(scores)), np.nan_to_num(scores), color=own, alpha=0.2)
    left.set(title="attribution score")
    for name, values in (feature.get("activation_per_step") or {}).items():
        right.plot(series(values), label=name, markevery=(0.0, 0.2), **styles.get(name, {}))
    right.set(title="activation by class")
    if right.lines:
        right.legend(loc="best", handlelength=1.5)
    steps_axis(left)
    steps_axis(right)


class Point(NamedTuple):
    """One setting in the plane of hard FD (x) and another measure (y).

    Attributes:
        line: what it shares with the points that a line connects it to: everything but a strength that is a number.
        name: how the legend calls it.
        attribute: the attribute under study; fronts are drawn among its points.
        original: whether it is the unmitigated model.
        strength: for the order on the line; 0 if it was not varied or is no number.
    """

    line: tuple[str, ...]
    name: str
    attribute: str
    original: bool
    strength: float
    x: float
    y: float


def front(points: Sequence[Point], *, better: int) -> list[Point]:
    """The points that no other one beats: with less FD and no worse in the measure, or as fair and better in it."""

    def beats(one: Point, other: Point) -> bool:
        gain = better * (one.y - other.y)
        return one.x <= other.x and gain >= 0 and (one.x < other.x or gain > 0)

    return [point for point in points if not any(beats(other, point) for other in points)]


def draw_trade(figure: Figure, points: Sequence[Point], *, measure: Measure) -> None:
    """Hard FD against a measure: one line per series over the strength, the points that nothing beats ringed."""
    axes, scale = figure.subplots(), measure.scale
    styles: dict[str, dict[str, Any]] = dict(class_styles(list(dict.fromkeys(point.name for point in points))))
    # `groupby` joins neighbours only; the points come sorted by line and strength.
    for _, group in groupby(points, key=lambda point: point.line):
        line = list(group)
        (drawn,) = axes.plot([p.x for p in line], [scale * p.y for p in line], **styles[line[0].name])
        if line[0].original:
            drawn.set_markerfacecolor("white")
    rings: dict[str, Any] = {"s": 90, "facecolors": "none", "edgecolors": INK, "linewidths": 0.9}
    # Each attribute has its own: the largest FD depends on the number of classes, so that two of them do not compete.
    for attribute in {point.attribute for point in points}:
        best = front([point for point in points if point.attribute == attribute], better=measure.better)
        axes.scatter([p.x for p in best], [scale * p.y for p in best], **rings)
    for name, style in styles.items():
        # Drawn for the legend alone: several lines may have one name.
        axes.plot([], [], **style, label=name)
    axes.set(xlabel="FD hard (0 is fair)", ylabel=with_unit(measure))
    figure.legend(loc="outside upper left", ncols=4)


def with_unit(measure: Measure) -> str:
    """How an axis calls a measure."""
    return f"{measure.heading} ({measure.unit})" if measure.unit else measure.heading


def dose_panels(data: Json) -> list[Measure]:
    """The measures that `draw_doses` gives a panel besides hard FD: what fairness may cost, as far as it was measured."""
    return [measure for measure in prices(measures_of(data)) if measure != WORST_LEAKAGE]


def doses_size(data: Json) -> tuple[float, float]:
    """The size of the plot of `draw_doses` in inches: two panels beside each other, as many rows as it takes."""
    return 7.6, 2.7 * _rows_of_panels(data)


def _rows_of_panels(data: Json) -> int:
    # Shares and FD are always there; then come the prices, and leakage if any was measured.
    return -(-(2 + len(dose_panels(data)) + any(row.get("leakage") for row in data["rows"])) // 2)


def draw_doses(figure: Figure, data: Json) -> None:
    """Shares, FD, its prices and leakage against `dose`, as far as they were measured.

    `data` may list the prices (`measures`) and name the dose (`axis`); without a name it is a multiple of the calibrated
    strength, which is marked.
    """
    rows, axis = data["rows"], data.get("axis")
    dose = [row["dose"] for row in rows]
    panels = iter(figure.subplots(_rows_of_panels(data), 2, squeeze=False).flat)

    def panel(title: str, curves: Mapping[str, Any], chance: float | None = None) -> None:
        axes = next(panels)
        for name, style in class_styles(list(curves)).items():
            axes.plot(dose, curves[name], label=name, **style)
        if chance is not None:
            axes.axhline(chance, **CHANCE, label="by chance")
        if axis is None:
            axes.axvline(1, color=FAINT, ls=":", lw=1.4)
        axes.set(title=title, xlabel=axis or "strength / calibrated strength")
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend()

    panel("share of images (%)", {name: 100 * inner(rows, "shares", name, "share") for name in data["classes"]})
    hard = series([fairness(row, FD.key) for row in rows])
    panel("FD hard", {"FD hard": hard}, fairness(rows[0], "fd_chance"))
    for measure in dose_panels(data):
        panel(with_unit(measure), {measure.label: measure.scale * series([measure.read(row) for row in rows])})
    others = dict.fromkeys(name for row in rows for name in row.get("leakage") or {})
    if others:
        flips = {name: 100 * inner(rows, "leakage", name, "flip_rate") for name in others}
        panel("other attributes changed (% of images)", flips)
    for axes in panels:
        axes.set_axis_off()


def draw_separation(figure: Figure, data: Json) -> None:
    """Every latent: how well it tells the attribute, against how well it tells the best told other factor."""
    axes = figure.subplots()
    own, other, chosen = series(data["own"]), series(data["other"]), np.asarray(data["chosen"], dtype=bool)
    axes.plot([0, 1], [0, 1], color=FAINT, ls="--", lw=1)
    axes.scatter(other[~chosen], own[~chosen], s=10, color=FAINT, label="other latents")
    axes.scatter(other[chosen], own[chosen], s=34, color=OKABE_ITO[1], marker="^", label="located by attribution")
    axes.set_xlabel("separation of the best told other factor, |2·AUC − 1|")
    axes.set_ylabel(f"separation of {data['attribute']}")
    figure.legend(loc="outside upper left", ncols=2)


def draw_ablation(figure: Figure, data: Json) -> None:
    """Share of images that keep their class with latents silenced: top, random, bottom."""
    axes, found = figure.subplots(), data["classes"]
    places = np.arange(len(found), dtype=float)
    for index, (kind, hatch) in enumerate((("top", ""), ("random", "///"), ("bottom", "..."))):
        style: dict[str, Any] = {"color": OKABE_ITO[index], "hatch": hatch, "ec": "white", "label": kind}
        axes.bar(places + 0.27 * (index - 1), 100 * inner([*found.values()], "kept", kind), 0.25, **style)
    axes.set_xticks(places, list(found))
    axes.set(ylabel="images that keep their class (%)", ylim=(0, 104))
    figure.legend(loc="outside upper left", ncols=3)


def draw_localisation(figure: Figure, data: Json) -> None:
    """How well a linear probe reads the class at every block (down) and step (across); framed: the best push."""
    axes, recall = figure.subplots(), 100 * np.asarray(data["recall"], dtype=np.float64)
    chance = 100 / len(data["classes"])
    shown = axes.imshow(recall, cmap="cividis", vmin=chance, vmax=100, aspect="auto", interpolation="nearest")
    figure.colorbar(shown, ax=axes, label="mean recall (%), darkest: chance")
    axes.set_yticks(range(len(data["sites"])), data["sites"])
    axes.grid(visible=False)
    steps_axis(axes)
    if data["trials"]:
        best, steps = data["trials"][0], recall.shape[1]
        # A window holds the steps s with start ≤ s/steps < stop, and a cell reaches half a step to either side.
        start, stop = (np.ceil(steps * best[end] - 1e-6) - 0.5 for end in ("start", "stop"))
        corner = (start, data["sites"].index(best["site"]) - 0.5)
        axes.add_patch(Rectangle(corner, stop - start, 1, fill=False, ec=OKABE_ITO[1], lw=2.5))


def draw_evolution(figure: Figure, data: Json) -> None:
    """Over the denoising steps: recall of each class by the probe, and how strongly its latents fire; then where."""
    classes, maps = data["classes"], data["maps"]
    parts: Any = figure.subfigures(2, 1, height_ratios=(2.6, 1.8))
    top, bottom = parts
    left, right = top.subplots(1, 2)
    for name, style in class_styles(classes).items():
        left.plot(100 * series(data["recall"][name]), label=name, markevery=3, **style)
        right.plot(series(data["firing"][name]["own"]), markevery=3, **style)
        right.plot(series(data["firing"][name]["other"]), ls=":", markevery=3, **style)
    left.axhline(100 / len(classes), **CHANCE)
    left.set(title="recall of the probe (%), dashed: chance", ylim=(0, 104))
    right.set(title="activity of its latents (dotted: on others)")
    for axes in (left, right):
        steps_axis(axes)
    top.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=len(classes))
    # One scale for all maps, so that they can be compared; latents that never fire leave it at 0, which spans nothing.
    largest = max(float(np.max(maps[name])) for name in classes) or 1.0
    for axes, name in zip(np.atleast_1d(bottom.subplots(1, len(classes))), classes, strict=True):
        axes.imshow(np.asarray(maps[name]), cmap="cividis", vmin=0, vmax=largest)
        axes.set(title=f"{name}: where, at step {data['busiest'][name]}", xticks=[], yticks=[])
        axes.grid(visible=False)
