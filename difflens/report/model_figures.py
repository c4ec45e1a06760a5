"""What was found inside the model: the autoencoder's health, the probe, single latents."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from difflens.report.palette import FAINT, INK, OKABE_ITO, class_styles
from difflens.report.run_folder import Json
from difflens.report.svg import series, steps_axis

SUPERSCRIPTS = str.maketrans("-0123456789", "\N{SUPERSCRIPT MINUS}⁰¹²³⁴⁵⁶⁷⁸⁹")


def draw_sae_steps(figure: Figure, sae: Json) -> None:
    """Reconstruction at every denoising step: fraction of variance unexplained, and denoising loss recovered."""
    curves = [
        ("fraction of variance unexplained", sae.get("fvu_per_step"), 0.0, OKABE_ITO[1]),
        ("denoising loss recovered", sae.get("loss_recovered_per_step"), 1.0, OKABE_ITO[0]),
    ]
    curves = [curve for curve in curves if curve[1]]
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (title, values, perfect, color) in zip(panels, curves, strict=True):
        axes.plot(series(values or []), color=color, marker="o", markersize=3)
        axes.axhline(perfect, color=FAINT, ls="--", lw=1)
        axes.set(title=title)
        axes.margins(y=0.15)
        steps_axis(axes)


def draw_density(figure: Figure, density: Json) -> None:
    """How often latents fire: a histogram over powers of ten, of edges in log10 or as plain shares."""
    axes = figure.subplots()
    edges, counts = series(density["edges"]), series(density["counts"])
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
        axes.axhline(100 * probe["chance"], color=INK, ls="--", lw=1.1, label="chance")
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
