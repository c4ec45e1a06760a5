"""What a mitigation did: shares, dose and response, leakage."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from difflens.report.palette import FAINT, INK, MARKERS, OKABE_ITO, class_styles
from difflens.report.run_folder import Json
from difflens.report.svg import series
from difflens.report.wording import method_name, number


def draw_shares(figure: Figure, rows: Sequence[Json], *, classes: Sequence[str], target: Mapping[str, float]) -> None:
    """Share of every class by every method, with intervals and a line at the target."""
    axes = figure.subplots()
    heights = np.arange(len(classes))[::-1].astype(float)
    offsets = np.linspace(0.18, -0.18, len(rows)) if len(rows) > 1 else [0.0]
    for name, height in zip(classes, heights, strict=True):
        if name in target:
            label = "target" if name == classes[0] else None
            axes.plot([100 * target[name]] * 2, [height - 0.36, height + 0.36], color=INK, ls="--", lw=1.3, label=label)
    for index, (row, offset) in enumerate(zip(rows, offsets, strict=True)):
        shares = [(row.get("shares") or {}).get(name) or {} for name in classes]
        middle, low, high = (100 * series([share.get(key) for share in shares]) for key in ("share", "low", "high"))
        original = row.get("method") == "original"
        axes.errorbar(
            middle,
            heights + offset,
            xerr=np.nan_to_num(np.stack([middle - low, high - middle])).clip(0),
            fmt=MARKERS[index % 7],
            color=FAINT if original else OKABE_ITO[(index - 1) % 7],
            markerfacecolor="white" if original else None,
            label=method_name(row),
            capsize=3,
            markersize=7,
        )
    axes.set_yticks(heights, classes)
    axes.set(xlim=(-3, 103), ylim=(-0.6, len(classes) - 0.4), xlabel="share of images (%)")
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside upper left", ncols=3)


def draw_dose(figure: Figure, dose: Json, *, classes: Sequence[str], target: Mapping[str, float]) -> None:
    """Success and shares against strength, with the chosen strengths.

    A class that no image was pushed towards answers to the strengths of the others: its share stands over the strength
    of the class that was pushed furthest.
    """
    points, styles = dose.get("points") or [], class_styles(classes)
    strength = {c: series([(p.get("strength") or {}).get(c) for p in points]) for c in classes}
    success = {c: series([(p.get("success") or {}).get(c) for p in points]) for c in classes}
    shares = {c: series([(p.get("shares") or {}).get(c) for p in points]) for c in classes}
    pushed = [c for c in classes if not np.isnan(success[c]).all()]
    lead = max(pushed or classes, key=lambda c: float(np.nan_to_num(strength[c]).max(initial=0)))
    left, right = figure.subplots(1, 2)
    for name in classes:
        own = strength[name if name in pushed else lead]
        order = np.argsort(own, kind="stable")
        if name in pushed:
            left.plot(own[order], 100 * success[name][order], label=name, **styles[name])
        right.plot(own[order], 100 * shares[name][order], label=name, **styles[name])
    _mark_chosen((left, right), {c: (dose.get("chosen") or {}).get(c) for c in pushed}, styles)
    for goal in sorted(set(target.values())):
        right.axhline(100 * goal, color=INK, ls="--", lw=1.1)
    left.set(title="images that show the class asked for", xlabel="strength", ylabel="%", ylim=(-4, 104))
    right.set(title="share of all images (dashed: target)", xlabel="strength", ylim=(-4, 104))
    entries = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in (right, left)]
    handles = {label: handle for panel in entries for handle, label in panel}
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=4)


def _mark_chosen(
    panels: Sequence[Axes], chosen: Mapping[str, float | None], styles: Mapping[str, dict[str, str]]
) -> None:
    for name, value in chosen.items():
        if value is None:
            continue
        for index, axes in enumerate(panels):
            label = f"chosen for {name}: {number(value, 2)}" if index == 0 else None
            axes.axvline(value, color=styles[name]["color"], ls=":", lw=1.8, label=label)


def draw_leakage(figure: Figure, leakage: Json) -> None:
    """How many images changed in each other attribute: of all, and of those that were edited."""
    axes = figure.subplots()
    names = list(leakage)
    heights = np.arange(len(names))[::-1].astype(float)
    bars = (
        ("flip_rate", 0.2, "of all images", OKABE_ITO[0], ""),
        ("flip_rate_edited", -0.2, "of the edited images", OKABE_ITO[4], "///"),
    )
    for key, offset, label, color, hatch in bars:
        rates = 100 * series([leakage[name].get(key) for name in names])
        shown = axes.barh(
            heights + offset, np.nan_to_num(rates), 0.36, color=color, edgecolor="white", hatch=hatch, label=label
        )
        axes.bar_label(shown, [number(rate, 1) for rate in rates.tolist()], padding=3, fontsize=8)
    axes.set_yticks(heights, names)
    axes.set_xlabel("images whose class changed (%)")
    axes.set_xlim(0, max(1.0, 1.12 * axes.dataLim.xmax))
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside upper left", ncols=2)
