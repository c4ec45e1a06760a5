"""What is written about a sweep: tidy CSV, the comparison in four formats, plots, and one page that holds all of it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from difflens.report.comparison import compare, points_of, responses_of
from difflens.report.figures import dose_panels, doses_size, draw_dose, draw_doses, draw_trade
from difflens.report.measures import measures_of, prices
from difflens.report.page import read_template, template_of
from difflens.report.svg import inline_svg
from difflens.report.sweep import Job, as_csv, tidy_rows
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
    grid = compare(jobs)
    write_text(sweep / "results.csv", as_csv(tidy_rows(jobs)))
    for name, text in (("md", grid.markdown()), ("tex", grid.latex()), ("html", grid.html())):
        write_text(sweep / f"table.{name}", text)
    for plot in (*trade_plots(jobs), *response_plots(jobs)):
        write_text(sweep / f"{plot.key}.svg", standalone(plot.figure))
    return write_text(sweep / "report.html", render_sweep(sweep, jobs))


def standalone(figure: Markup) -> str:
    """An inline figure as a file of its own."""
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    text = str(figure)
    return text if "xmlns=" in text else text.replace("<svg ", f"<svg {spaces} ", 1)


def trade_plots(jobs: Sequence[Job]) -> Iterator[Plot]:
    """FD against every measure that has a better end, as far as it was measured."""
    for measure in prices(measures_of(*(job.metrics for job in jobs))):
        points = points_of(jobs, measure)
        if len(points) > 1:
            title, key = f"FD and {measure.label}", f"pareto_{measure.key}"
            draw = partial(draw_trade, points=points, measure=measure)
            yield Plot(key, title, inline_svg(draw, (5.6, 3.6), name=key, label=title))


def response_plots(jobs: Sequence[Job]) -> Iterator[Plot]:
    """Shares, FD, its prices and leakage of the evaluation images against the strengths that were swept."""
    for number, (title, data) in enumerate(responses_of(jobs)):
        shown = ", ".join(["shares", "FD", *(measure.label for measure in dose_panels(data))])
        label = f"{shown} against {data['axis']}: {title}"
        figure = inline_svg(partial(draw_doses, data=data), doses_size(data), name=f"response_{number}", label=label)
        yield Plot(f"response_{number}", title, figure)


def dose_plots(jobs: Sequence[Job]) -> Iterator[Plot]:
    """The dose–response curve of each attribute's first calibrated job."""
    calibrated = [job for job in jobs if job.dose and job.dose.get("points") and job.metrics.get("classes")]
    first = {job.attribute: job for job in reversed(calibrated)}
    for number, (attribute, job) in enumerate(reversed(first.items())):
        classes, target = list(job.metrics["classes"]), job.metrics.get("target") or {}
        draw = partial(draw_dose, dose=job.dose or {}, classes=classes, target=target)
        label = f"success and shares of {attribute} against the strength of the edit"
        figure = inline_svg(draw, (7.2, 3.1), name=f"dose-{number}", label=label)
        yield Plot(f"dose-{number}", f"{attribute} (job {job.name})", figure)


def render_sweep(sweep: Path, jobs: Sequence[Job]) -> str:
    """The page as text; everything that comes from the jobs is escaped."""
    counted, grid = Counter(job.status for job in jobs), compare(jobs)
    models = dict.fromkeys(str(job.metrics["model"]) for job in jobs if job.metrics.get("model"))
    return template_of("sweep").render(
        style=read_template("style.css"),
        script=read_template("sort.js"),
        name=sweep.resolve().name,
        result=f"{counted['done']} of {count(len(jobs), 'job')} done",
        others=[f"{number} {status}" for status, number in counted.items() if status != "done"],
        models=list(models),
        drawn=any(model.startswith("mini") for model in models),
        spread=grid.caption,
        table=grid._replace(caption="").html(),
        trades=[*trade_plots(jobs)],
        responses=[*response_plots(jobs)],
        doses=[*dose_plots(jobs)],
        jobs=[(job, (job.folder / "report.html").is_file(), seconds(job.seconds)) for job in jobs],
    )
