"""Plots of the first experiments (METHOD section 10), as SVG files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from difflens.report.palette import FAINT, INK, OKABE_ITO, class_styles
from difflens.report.run_folder import Json
from difflens.report.svg import drawn, series, steps_axis
from difflens.report.wording import fairness


def draw_separation(figure: Figure, data: Json) -> None:
    """Every latent: how well it tells the attribute, against how well it tells the best told other factor."""
    axes = figure.subplots()
    own, other, chosen = series(data["own"]), series(data["other"]), np.asarray(data["chosen"], dtype=bool)
    axes.plot([0, 1], [0, 1], color=FAINT, ls="--", lw=1)
    axes.scatter(other[~chosen], own[~chosen], s=10, color=FAINT, label="other latents")
    axes.scatter(other[chosen], own[chosen], s=34, color=OKABE_ITO[1], marker="^", label="located by attribution")
    axes.set(
        xlabel="separation of the best told other factor, |2·AUC − 1|", ylabel=f"separation of {data['attribute']}"
    )
    figure.legend(loc="outside upper left", ncols=2)


def draw_ablation(figure: Figure, data: Json) -> None:
    """Share of images that keep their class with latents silenced: top, random, bottom."""
    axes, kept = figure.subplots(), data["kept"]
    kinds, hatches = ("top", "random", "bottom"), ("", "///", "...")
    places = np.arange(len(kept), dtype=float)
    for index, (kind, hatch) in enumerate(zip(kinds, hatches, strict=True)):
        heights = [100 * shares[kind] for shares in kept.values()]
        axes.bar(
            places + 0.27 * (index - 1), heights, 0.25, color=OKABE_ITO[index], hatch=hatch, ec="white", label=kind
        )
    axes.set_xticks(places, list(kept))
    axes.set(ylabel="images that keep their class (%)", ylim=(0, 104))
    figure.legend(loc="outside upper left", ncols=3)


def draw_doses(figure: Figure, data: Json) -> None:
    """Shares, FD, CLIP-I and leakage against `dose`, as far as they were measured.

    `data` may name the dose (`axis`); without a name it is a multiple of the calibrated strength, which is marked.
    """
    rows, axis = data["rows"], data.get("axis")
    dose = [row["dose"] for row in rows]
    panels = figure.subplots(2, 2).flat
    for name, style in class_styles(data["classes"]).items():
        panels[0].plot(dose, 100 * _inside(rows, "shares", name, "share"), label=name, **style)
    panels[1].plot(
        dose, series([fairness(row, "fd_hard") for row in rows]), color=OKABE_ITO[0], marker="o", label="FD hard"
    )
    if (chance := fairness(rows[0], "fd_chance")) is not None:
        panels[1].axhline(chance, color=INK, ls="--", lw=1, label="by chance")
    panels[2].plot(dose, series([row.get("clip_i") for row in rows]), color=OKABE_ITO[0], marker="o")
    others = list(dict.fromkeys(name for row in rows for name in row.get("leakage") or {}))
    for name, style in class_styles(others).items():
        panels[3].plot(dose, 100 * _inside(rows, "leakage", name, "flip_rate"), label=name, **style)
    titles = ("share of images (%)", "FD hard", "CLIP-I (cosine)", "other attributes changed (% of images)")
    for axes, title in zip(panels, titles, strict=True):
        if axis is None:
            axes.axvline(1, color=FAINT, ls=":", lw=1.4)
        axes.set(title=title, xlabel=axis or "strength / calibrated strength")
    for axes in (panels[0], panels[1], panels[3]):
        if axes.get_legend_handles_labels()[0]:
            axes.legend()


def _inside(rows: Sequence[Json], group: str, name: str, key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A number of every row that lies two levels down."""
    return series([((row.get(group) or {}).get(name) or {}).get(key) for row in rows])


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
    left.axhline(100 / len(classes), color=INK, ls="--", lw=1)
    left.set(title="recall of the probe (%), dashed: chance", ylim=(0, 104))
    right.set(title="activity of its latents (dotted: on others)")
    for axes in (left, right):
        steps_axis(axes)
    top.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=len(classes))
    largest = max(float(np.max(maps[name])) for name in classes) or 1.0
    for axes, name in zip(np.atleast_1d(bottom.subplots(1, len(classes))), classes, strict=True):
        axes.imshow(np.asarray(maps[name]), cmap="cividis", vmin=0, vmax=largest)
        axes.set(title=f"{name}: where, at step {data['busiest'][name]}", xticks=[], yticks=[])
        axes.grid(visible=False)


def save_plot(
    folder: Path, name: str, draw: Callable[[Figure, Any], None], data: Any, size: tuple[float, float]
) -> Path:
    """Write `<name>.svg` into the run folder, drawn from what `<name>.json` holds; sizes are in inches."""
    path = folder / f"{name}.svg"
    with drawn(lambda figure: draw(figure, data), size) as figure:
        figure.savefig(path, metadata={"Date": None})
    return path
