"""What is written about a sweep: tidy CSV, the comparison in four formats, plots, and one page that holds all of it."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from difflens.report.comparison import compare
from difflens.report.experiment_figures import draw_doses
from difflens.report.outcome_figures import draw_dose
from difflens.report.page import TEMPLATES, template_of
from difflens.report.responses import responses_of
from difflens.report.svg import inline_svg
from difflens.report.sweep import Job, as_csv, tidy_rows
from difflens.report.sweep_figures import TRADES, dose_jobs, draw_trade, points_of
from difflens.report.wording import count, seconds
from difflens.store.files import write_text


class Plot(NamedTuple):
    """A figure of the page and its heading."""

    key: str
    title: str
    figure: Markup


def write_sweep(sweep: Path, jobs: Sequence[Job]) -> Path:
    """Write results.csv, table.md, table.tex, table.html, the plots and report.html into a sweep's folder.

    Returns:
        Path of the page: one file that needs no network, no script and no other file; it links to the jobs' reports.
    """
    grid, plots = compare(jobs), [*trade_plots(jobs), *response_plots(jobs)]
    write_text(sweep / "results.csv", as_csv(tidy_rows(jobs)))
    for name, text in (("md", grid.markdown()), ("tex", grid.latex()), ("html", grid.html())):
        write_text(sweep / f"table.{name}", text)
    for plot in plots:
        write_text(sweep / f"{plot.key}.svg", standalone(plot.figure))
    return write_text(sweep / "report.html", render_sweep(sweep, jobs))


def standalone(figure: Markup) -> str:
    """An inline figure as a file of its own."""
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    text = str(figure)
    return text if "xmlns=" in text else text.replace("<svg ", f"<svg {spaces} ", 1)


def trade_plots(jobs: Sequence[Job]) -> list[Plot]:
    """FD against FID, CLIP-I and leakage, as far as they were measured."""
    found = []
    for measure in TRADES:
        points = points_of(jobs, measure)
        if len(points) > 1:
            title = f"FD and {measure.label.rstrip(' ↓↑')}"
            draw = partial(draw_trade, points=points, measure=measure)
            key = f"pareto_{measure.key}"
            found.append(Plot(key, title, inline_svg(draw, (5.6, 3.6), name=key, label=title)))
    return found


def response_plots(jobs: Sequence[Job]) -> list[Plot]:
    """Shares, FD, CLIP-I and leakage of the evaluation images against the strengths that were swept."""
    found: list[Plot] = []
    for title, data in responses_of(jobs):
        key = f"response_{len(found)}"
        label = f"shares, FD, CLIP-I and leakage against {data['axis']}: {title}"
        figure = inline_svg(partial(draw_doses, data=data), (7.6, 5.4), name=key, label=label)
        found.append(Plot(key, title, figure))
    return found


def dose_plots(jobs: Sequence[Job]) -> list[Plot]:
    """The dose–response curve of each attribute's first calibrated job."""
    found: list[Plot] = []
    for attribute, job in dose_jobs(jobs).items():
        classes, target = list(job.metrics["classes"]), job.metrics.get("target") or {}
        draw = partial(draw_dose, dose=job.dose or {}, classes=classes, target=target)
        label = f"success and shares of {attribute} against the strength of the edit"
        figure = inline_svg(draw, (7.2, 3.1), name=f"dose-{len(found)}", label=label)
        found.append(Plot(f"dose-{len(found)}", f"{attribute} (job {job.name})", figure))
    return found


def render_sweep(sweep: Path, jobs: Sequence[Job]) -> str:
    """The page as text; everything that comes from the jobs is escaped."""
    counted, grid = Counter(job.status for job in jobs), compare(jobs)
    models = dict.fromkeys(str(job.metrics["model"]) for job in jobs if job.metrics.get("model"))
    return template_of("sweep").render(
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "sort.js").read_text(encoding="utf-8")),
        name=sweep.resolve().name,
        result=f"{counted['done']} of {count(len(jobs), 'job')} done",
        others=[f"{number} {status}" for status, number in counted.items() if status != "done"],
        models=list(models),
        drawn=any(model.startswith("mini") for model in models),
        spread=grid.caption,
        table=grid._replace(caption="").html(),
        trades=trade_plots(jobs),
        responses=response_plots(jobs),
        doses=dose_plots(jobs),
        jobs=[(job, has_report(job), seconds(job.seconds)) for job in jobs],
    )


def has_report(job: Job) -> bool:
    """Whether there is a page to link to."""
    return (job.folder / "report.html").is_file()
