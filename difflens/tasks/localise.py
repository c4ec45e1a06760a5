"""`task=localise`: a heat map of where and when a bias can be read, and what a push at the most telling places does."""

from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from difflens.report.figures import draw_localisation
from difflens.report.tables import Grid
from difflens.stages.localise import REAL, localisation
from difflens.store.errors import UserError
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


def found(cfg: DictConfig, run: Run, asked: Collection[str]) -> DictConfig:
    """The configuration with what was found best, in the place of what it left open by the word `auto`.

    The run's manifest keeps what was chosen (`chosen`), and the artifact that it was read from.

    Args:
        cfg: with any values where it left something open.
        run: whose results the choice serves.
        asked: `data.site`, `mitigation.window` or both.

    Raises:
        UserError: a window is asked for of a method that acts elsewhere than at the site.
    """
    cfg = deepcopy(cfg)
    # The run's own tracker is opened by its task, with the values that are found here.
    bench = Workbench(OmegaConf.merge(cfg, {"logger": None}), run)  # type: ignore[arg-type]
    if not bench.method.at_site:
        if "mitigation.window" in asked:
            raise UserError(
                "mitigation.window=auto is found for edits at data.site, and "
                f"mitigation={cfg.mitigation.name} acts elsewhere: give its start and stop."
            )
        return cfg
    site = None if "data.site" in asked else bench.site
    given = None if "mitigation.window" in asked else cfg.mitigation.get("window")
    window = None if given is None else (given.start, given.stop)
    every = localisation(bench, site=site, window=window)
    best = every["trials"][0]
    chosen: dict[str, Any] = {}
    if "data.site" in asked:
        cfg.data.site.module = chosen["data.site.module"] = best["site"]
    if "mitigation.window" in asked:
        cfg.mitigation.window.start = chosen["mitigation.window.start"] = best["start"]
        cfg.mitigation.window.stop = chosen["mitigation.window.stop"] = best["stop"]
    run.manifest["chosen"] = {"values": chosen, "artifact": every["artifact"], "trial": best}
    run.write_manifest()
    values = " ".join(f"{key}={value}" for key, value in chosen.items())
    arrived = f"{100 * best['reached']:.1f} % of pushed images reach their class there"
    run.say(f"chosen from {every['artifact']}: {values} ({arrived}, oddness {best['oddness']:.2f})")
    return cfg
