"""`task=localise`: a heat map of where and when a bias can be read, and what a push at the most telling places does."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from difflens.report.figures import draw_localisation
from difflens.report.tables import Grid
from difflens.stages.localise import REAL, localisation
from difflens.store.run import Run
from difflens.study.workbench import Workbench
from difflens.tasks.experiment_files import keep


def localise(cfg: DictConfig, run: Run) -> None:
    """Write `localise.json` and `localise.svg`, and say where a push moves the attribute with the least beside it."""
    found = localisation(Workbench(cfg, run))
    if run.rank:
        return
    Console().print(ranking(found).terminal(f"{found['attribute']}: where a push moves it, and what else changes"))
    best = found["trials"][0]
    window = f"mitigation.window.start={best['start']:g} mitigation.window.stop={best['stop']:g}"
    run.say(f"best: data.site.module={best['site']} {window}")
    keep(run, "localise", found, draw_localisation, (7.6, 1.2 + 0.3 * len(found["sites"])))


def ranking(found: Mapping[str, Any]) -> Grid:
    """The pushes as a table, best first."""
    lines = [
        [
            trial["site"],
            f"{trial['start']:g}–{trial['stop']:g}",
            f"{trial['strength']:g}",
            f"{100 * trial['reached']:.1f} %",
            f"{100 * trial['nothing_else']:.1f} %",
            f"{trial['clip_i']:.3f} ({trial['clip_low']:.3f}–{trial['clip_high']:.3f})",
            f"{trial['oddness']:.2f}",
        ]
        for trial in found["trials"]
    ]
    header = ["block", "window", "strength", "class reached", "nothing else changed", "CLIP-I, 95 %", "oddness"]
    caption = (
        "Pushes along the mean difference between the classes, by the judge that labels. Oddness: the untouched model's "
        f"denoising error after the push at all places, × that on originals; above {REAL:g} they look wrong, and come later."
    )
    return Grid(header, lines, numbers=5, caption=caption)
