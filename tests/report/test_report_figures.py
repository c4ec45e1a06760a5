"""What the figures draw is what was measured, where it was measured."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from difflens.report import figures
from difflens.report.page import SECTIONS, render, template_of, verdict
from difflens.report.run_folder import read_run

CLASSES = ["female", "male"]
HALF = {"female": 0.5, "male": 0.5}


def drawn(draw: Callable[..., None], **data: Any) -> Figure:
    figure = Figure()
    draw(figure, **data)
    return figure


def curve(figure: Figure, panel: int, label: str) -> list[tuple[float, float]]:
    line = next(line for line in figure.axes[panel].lines if line.get_label() == label)
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


def test_the_share_of_a_class_nobody_was_pushed_to_stands_over_the_others_strength() -> None:
    points = []
    for s, p in ((3.0, 0.75), (1.5, 0.25), (2.0, 0.5)):
        shares = {"success": {"female": p, "male": None}, "shares": {"female": p, "male": 1 - p}}
        points.append({"strength": {"female": s, "male": 9.0}, **shares})
    dose: dict[str, Any] = {"points": points, "chosen": {"female": 2.0, "male": 0.0}}
    figure = drawn(figures.draw_dose, dose=dose, classes=CLASSES, target=HALF)
    assert curve(figure, 0, "female") == [(1.5, 25), (2.0, 50), (3.0, 75)]
    assert curve(figure, 1, "female") == [(1.5, 25), (2.0, 50), (3.0, 75)]
    assert curve(figure, 1, "male") == [(1.5, 75), (2.0, 50), (3.0, 25)]
    assert "male" not in [line.get_label() for line in figure.axes[0].lines]
    dotted = [line for axes in figure.axes for line in axes.lines if line.get_linestyle() == ":"]
    assert [list(np.asarray(line.get_xdata())) for line in dotted] == [[2.0, 2.0]] * 2
    dashed = [line for line in figure.axes[1].lines if line.get_linestyle() == "--"]
    assert [list(np.asarray(line.get_ydata())) for line in dashed] == [[50.0, 50.0]]


def test_shares_have_their_intervals_and_their_own_target() -> None:
    share = {"female": {"share": 0.3, "low": 0.25, "high": 0.36}, "male": {"share": 0.7, "low": 0.64, "high": 0.75}}
    rows = [{"method": "original", "shares": share}, {"method": "difflens", "shares": {}}]
    figure = drawn(figures.draw_shares, rows=rows, classes=CLASSES, target={"female": 0.75, "male": 0.25})
    axes = figure.axes[0]
    segments = axes.containers[0][2][0].get_segments()
    ends = [sorted(float(x) for x in segment[:, 0]) for segment in segments]
    assert ends == [pytest.approx([25, 36]), pytest.approx([64, 75])]
    dashed = [np.asarray(line.get_xydata()) for line in axes.lines if line.get_linestyle() == "--"]
    assert [line.mean(0).tolist() for line in dashed] == [[75.0, 1.0], [25.0, 0.0]]


def test_leakage_bars_say_what_was_not_measured() -> None:
    leakage = {
        "age": {"flip_rate": 0.02, "flip_rate_edited": 0.1},
        "hair": {"flip_rate": 0.04, "flip_rate_edited": None},
    }
    axes = drawn(figures.draw_leakage, leakage=leakage).axes[0]
    assert [patch.get_width() for patch in axes.patches] == pytest.approx([2, 4, 10, 0])  # type: ignore[attr-defined]
    assert [text.get_text() for text in axes.texts] == ["2.0", "4.0", "10.0", "\N{EN DASH}"]


def test_probe_and_reconstruction_are_drawn_against_chance_and_perfection() -> None:
    probe = drawn(figures.draw_probe, probe={"accuracy_per_step": [0.5, None, 0.9], "chance": 0.25}).axes[0]
    assert np.array_equal(np.asarray(probe.lines[0].get_ydata()), [50, np.nan, 90], equal_nan=True)
    assert list(np.asarray(probe.lines[1].get_ydata())) == [25, 25]
    sae = {"fvu_per_step": [0.2, 0.1], "loss_recovered_per_step": [0.8, 0.9]}
    panels = drawn(figures.draw_sae_steps, sae=sae).axes
    assert [float(np.asarray(axes.lines[1].get_ydata())[0]) for axes in panels] == [0.0, 1.0]
    assert len(drawn(figures.draw_sae_steps, sae={"fvu_per_step": [0.2]}).axes) == 1


@pytest.mark.parametrize("edges", [[-3, -2, -1, 0], [0.001, 0.01, 0.1, 1.0]])
def test_density_edges_may_be_shares_or_their_logarithms(edges: list[float]) -> None:
    axes = drawn(figures.draw_density, density={"edges": edges, "counts": [1, 2, 3]}).axes[0]
    assert axes.patches[0].get_data().edges.tolist() == pytest.approx([-3, -2, -1, 0])  # type: ignore[attr-defined]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10⁻³", "10⁻²", "10⁻¹", "1"]


def test_classes_differ_in_colour_and_in_shape() -> None:
    styles = figures.class_styles([f"class {i}" for i in range(7)])
    assert {style["color"] for style in styles.values()} == set(figures.OKABE_ITO)
    assert {style["marker"] for style in styles.values()} == set(figures.MARKERS)


def test_text_in_a_figure_stays_text_and_formulae_are_not_read() -> None:
    def draw(figure: Figure) -> None:
        figure.text(0.1, 0.5, "<b> $x$ & $y$")

    svg = figures.inline_svg(draw, (2, 1), name="one", label='"quoted"')
    assert re.search(r"<text[^>]*>&lt;b&gt; \$x\$ &amp; \$y\$</text>", svg)
    assert svg.startswith('<svg role="img" aria-label="&quot;quoted&quot;"') and "viewBox" in svg


def test_a_calibration_that_falls_short_says_by_how_much() -> None:
    assert verdict(False, [0.5, None, 0.975, 0.9]).endswith("of the images pushed towards it at most 97.5 % show it")
    assert verdict(True, [None, None]) == "no image had to be pushed"
    assert verdict(None, []) == ""


def test_every_prompt_has_shares_and_a_target_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    targets = []
    monkeypatch.setattr(figures, "draw_shares", lambda figure, *, target, **about: targets.append(target))
    shares = {"female": {"share": 0.9}, "male": {"share": 0.1}}
    prompts = {"a <nurse>": {"shares": shares, "target": {"female": 0.25, "male": 0.75}}}
    rows = [{"method": method, "shares": shares, "prompts": prompts} for method in ("original", "difflens")]
    run = replace(read_run(tmp_path), metrics={"classes": CLASSES, "target": HALF, "rows": rows})
    (shown,) = [section for section in SECTIONS if section.key == "shares"]
    body = render(shown, run, template_of("sections").render)
    assert body.count("<svg") == 2 and targets == [HALF, prompts["a <nurse>"]["target"]]
    assert "<h3>all prompts together</h3>" in body and "<h3>a &lt;nurse&gt;</h3>" in body
