"""What is written about a sweep: tidy CSV, the comparison in four formats, plots, and one page that holds all of it."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from difflens.report.figures import Point, dose_panels, doses_size, draw_doses, draw_trade, inline_svg
from difflens.report.measures import (
    FD,
    METHOD_NAMES,
    NONE,
    SOMETHING_ELSE,
    WORST_LEAKAGE,
    Measure,
    count,
    fairest,
    fairness,
    mean,
    measures_of,
    prices,
    seconds,
)
from difflens.report.page import dose_figure, read_template, template_of
from difflens.report.run_folder import Json, edited_rows, rows_of
from difflens.report.sweep import (
    Job,
    as_csv,
    doubts_sentence,
    factors_of,
    moves_originals,
    seeds_of,
    spread_sentence,
    strength_axis,
    strength_of,
    tidy_rows,
)
from difflens.report.tables import Grid, inside, names_in
from difflens.store.files import write_text

Setting = tuple[str, ...]
"""The values of the factors, then the method."""


@dataclass
class Cell:
    """What one setting gave: the jobs that were asked for it, and the results by seed."""

    jobs: list[Job] = field(default_factory=list)
    rows: dict[tuple[str, ...], Json] = field(default_factory=dict)

    def values(self, measure: Measure) -> list[float]:
        """The measure of every seed."""
        found = (measure.read(row) for row in self.rows.values())
        return [value for value in found if value is not None]

    def mean(self, measure: Measure) -> float | None:
        """The measure's mean over seeds; None if it was not measured."""
        return mean(self.values(measure))

    def shown(self, measure: Measure) -> str:
        """Mean ± standard deviation over seeds (of a sample; none for one seed)."""
        values = self.values(measure)
        return measure.shown([mean(values), statistics.stdev(values) if len(values) > 1 else None])


def cells_of(jobs: Sequence[Job]) -> dict[Setting, Cell]:
    """The results by setting: seeds are pooled, and the unmitigated images stand once for all that cannot change them.

    A job without results gives a cell without rows, whose method is empty, unless another seed of its setting has some.
    """
    factors, seeds = factors_of(jobs), seeds_of(jobs)
    cells: dict[Setting, Cell] = {}
    # Jobs with results come first, so that one without finds the settings that it would have added to.
    for job in sorted(jobs, key=lambda job: not job.metrics):
        for row in rows_of(job.metrics) or [{}]:
            method = str(row.get("method", ""))
            asked = {key: value for key, value in job.overrides.items() if method != "original" or moves_originals(key)}
            setting = (*(asked.get(key, NONE) for key in factors), method)
            # A failed job counts for all methods of its setting, which then say `1 of 2`; alone it has its own row.
            same = [cells[other] for other in cells if other[:-1] == setting[:-1] and other[-1] != "original"]
            for cell in same if not row and same else [cells.setdefault(setting, Cell())]:
                cell.jobs.append(job)
                if row:
                    # The first of equals: jobs with the same seeds have measured the same unmitigated images.
                    cell.rows.setdefault(tuple(asked.get(key, "") for key in seeds), row)
    return cells


def compare(jobs: Sequence[Job]) -> Grid:
    """The table of all settings: factors, method, measures that at least one setting has, and how many seeds."""
    cells, measures = cells_of(jobs), measures_of(*(job.metrics for job in jobs))
    header = [*factors_of(jobs), "method", *(measure.heading for measure in measures), "runs"]
    rows = [[*_named(setting), *_body(cell, measures)] for setting, cell in sorted(cells.items(), key=_order)]
    return Grid(header, rows, numbers=len(measures) + 1, caption=spread_sentence(jobs) + doubts_sentence(jobs))


STAGES = {"fit": "fit", "calibrate": "calibration", "steer": "steered"}
"""Stages whose cost depends on the method, and the kind of artifact that each makes."""


def costs(jobs: Sequence[Job]) -> Grid | None:
    """What each setting's method cost; None unless the sweep varies it and a job is done."""
    factors, done = factors_of(jobs), [job for job in jobs if job.metrics]
    if "mitigation" not in factors or not done:
        return None
    header = [*factors, "method", "compute of a changed image, × plain", *(f"{stage}, s" for stage in STAGES)]
    rows = []
    for job in done:
        row = edited_rows(job.metrics)[0]
        compute = row.get("compute")
        named = _named((*(job.overrides.get(key, NONE) for key in factors), str(row["method"])))
        spent = (_spent(job.manifest, stage, kind) for stage, kind in STAGES.items())
        rows.append([*named, NONE if compute is None else f"{compute:.2f}", *spent])
    caption = "Operations are counted; seconds are this machine's. What an earlier run had made is not timed."
    return Grid(header, rows, numbers=1 + len(STAGES), caption=caption)


def _spent(manifest: Json, stage: str, kind: str) -> str:
    made = [entry for entry in manifest.get("artifacts") or [] if entry.get("kind") == kind]
    if not made:
        return NONE
    # Where the artifact was there, the stage's seconds are those of finding it.
    return "reused" if made[0].get("reused") else f"{manifest['seconds'].get(stage, 0.0):.0f}"


def _order(item: tuple[Setting, Cell]) -> tuple[int, int]:
    """Settings in the order of their jobs, the unmitigated images first."""
    (*_, method), cell = item
    first = min(int(job.name) if job.name.isdigit() else 0 for job in cell.jobs)
    # By the first job that asked, in which order the user wrote them.
    return first, int(method != "original")


def _named(setting: Setting) -> list[str]:
    *values, method = setting
    return [*values, METHOD_NAMES.get(method, method) or "missing"]


def _body(cell: Cell, measures: Sequence[Measure]) -> list[str]:
    if not cell.rows:
        return [*["missing"] * len(measures), "; ".join(f"job {job.name}: {job.status}" for job in cell.jobs)]
    asked = len({job.name for job in cell.jobs})
    lacking = sum(not job.metrics for job in cell.jobs)
    runs = f"{asked - lacking} of {asked}" if lacking else f"{len(cell.rows)}"
    return [*(cell.shown(measure) for measure in measures), runs]


def split_strength(factors: Sequence[str], setting: Setting) -> tuple[Setting, float | None]:
    """A setting without its strength; a strength that is no number, such as `auto`, stays in the setting."""
    axis = strength_axis(factors)
    strength = None if axis is None else strength_of(setting[factors.index(axis)])
    others = (found for key, found in zip((*factors, "method"), setting, strict=True) if key != axis)
    return (setting, None) if strength is None else (tuple(others), strength)


def points_of(jobs: Sequence[Job], measure: Measure) -> list[Point]:
    """The settings that have both hard FD and the measure, line by line in the order of strength."""
    factors, fair = factors_of(jobs), fairest(measures_of(*(job.metrics for job in jobs))) or FD
    cells = {setting: cell for setting, cell in cells_of(jobs).items() if cell.rows}
    several = _several_methods(cells)
    points = []
    for setting, cell in cells.items():
        x, y = cell.mean(fair), cell.mean(measure)
        if x is not None and y is not None:
            line, strength = split_strength(factors, setting)
            attribute, method = cell.jobs[0].attribute, setting[-1]
            # Several methods have a plot for each attribute, and one method has all attributes in one.
            name = METHOD_NAMES.get(method, method) if several else attribute
            points.append(Point(line, name, attribute, method == "original", strength or 0.0, x, y))
    # The figure joins neighbours to lines, in this order.
    return sorted(points, key=lambda point: (point.line, point.strength))


def _several_methods(cells: Mapping[Setting, Cell]) -> bool:
    return len({method for *_, method in cells} - {"original", ""}) > 1


def responses_of(jobs: Sequence[Job]) -> list[tuple[str, Json]]:
    """The title of each attribute, method and setting measured at two strengths or more, and what `draw_doses` draws of it.

    `rows` stand in the order of strength and are means over seeds.
    """
    factors = factors_of(jobs)
    axis = strength_axis(factors)
    found: dict[tuple[str, ...], list[tuple[float, Cell]]] = {}
    for setting, cell in cells_of(jobs).items():
        line, strength = split_strength(factors, setting)
        if strength is not None and cell.rows:
            found.setdefault((cell.jobs[0].attribute, *line), []).append((strength, cell))
    others = [key for key in factors if key != axis]
    return [
        (_title(others, name), {"axis": axis, **_response(sorted(line, key=lambda item: item[0]))})
        for name, line in found.items()
        if len({strength for strength, _ in line}) > 1
    ]


def _title(others: Sequence[str], name: Sequence[str]) -> str:
    attribute, *values, method = name
    named = [f"{key}={value}" for key, value in zip(others, values, strict=True) if key != "attribute"]
    return ", ".join([attribute, METHOD_NAMES.get(method, method), *named])


def _response(line: Sequence[tuple[float, Cell]]) -> dict[str, Any]:
    """Means over seeds, shaped as rows of metrics.json are."""
    metrics = [job.metrics for _, cell in line for job in cell.jobs]
    # The leakage of every attribute has a panel of its own.
    measures = [measure for measure in prices(measures_of(*metrics)) if measure != WORST_LEAKAGE]
    rows = [
        {
            "dose": strength,
            **{key: mean(fairness(row, key) for row in cell.rows.values()) for key in ("fd_hard", "fd_chance")},
            **{measure.column: cell.mean(measure) for measure in measures},
            "shares": _means(cell, "shares", "share"),
            "leakage": _means(cell, "leakage", "flip_rate"),
        }
        for strength, cell in line
    ]
    return {
        "classes": list(metrics[0].get("classes") or []),
        "measures": [vars(each) for each in measures],
        "rows": rows,
    }


def _means(cell: Cell, group: str, key: str) -> Mapping[str, Json]:
    """The mean of a number of every class, or of every other attribute."""
    rows = list(cell.rows.values())
    return {name: {key: mean(inside(row, group, name).get(key) for row in rows)} for name in names_in(rows, group)}


class Plot(NamedTuple):
    """A figure of the page and its heading."""

    key: str
    title: str
    figure: Markup


def _standalone(figure: Markup) -> str:
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    # Inside a page an `<svg>` needs no name spaces; a file without them is shown by no browser.
    text = str(figure)
    return text if "xmlns=" in text else text.replace("<svg ", f"<svg {spaces} ", 1)


def trade_plots(jobs: Sequence[Job]) -> Iterator[Plot]:
    """FD against every measure that has a better end, as far as it was measured; of several methods, by attribute."""
    for listed in prices(measures_of(*(job.metrics for job in jobs))):
        measure = SOMETHING_ELSE if listed.key == "nothing_else" else listed
        points = points_of(jobs, measure)
        attributes = dict.fromkeys(job.attribute for job in jobs if job.metrics)
        # A line for every method of every attribute in one plot could not be told apart.
        apart = len(attributes) > 1 and _several_methods(cells_of(jobs))
        for name in attributes if apart else [""]:
            own = [point for point in points if point.attribute == name] if apart else points
            if len(own) > 1:
                title = f"FD and {measure.label}" + (f", {name}" if apart else "")
                key = f"pareto_{measure.key}" + (f"_{name}" if apart else "")
                shown = {"points": own, "measure": measure}
                yield Plot(key, title, inline_svg(draw_trade, (5.6, 3.6), name=key, label=title, **shown))


def response_plots(jobs: Sequence[Job]) -> Iterator[Plot]:
    """Shares, FD, its prices and leakage of the evaluation images against the strengths that were swept."""
    for number, (title, data) in enumerate(responses_of(jobs)):
        shown = ", ".join(["shares", "FD", *(measure.label for measure in dose_panels(data))])
        label = f"{shown} against {data['axis']}: {title}"
        key = f"response_{number}"
        yield Plot(key, title, inline_svg(draw_doses, doses_size(data), name=key, label=label, data=data))


def dose_plots(jobs: Sequence[Job]) -> Iterator[Plot]:
    """The dose–response curve of each attribute's first calibrated job."""
    calibrated = [job for job in jobs if job.dose and job.dose.get("points") and job.metrics.get("classes")]
    # Later entries win in a mapping: backwards, the first job of each attribute does.
    first = {job.attribute: job for job in reversed(calibrated)}
    for number, (attribute, job) in enumerate(reversed(first.items())):
        classes, key = list(job.metrics["classes"]), f"dose-{number}"
        label = f"success and shares of {attribute} against the strength of the edit"
        figure = dose_figure(job.dose or {}, classes, job.metrics.get("target"), name=key, label=label)
        yield Plot(key, f"{attribute} (job {job.name})", figure)


def write_sweep(sweep: Path, jobs: Sequence[Job], pairs: Grid | None = None) -> Path:
    """Write results.csv, table.md, table.tex, table.html, the plots and report.html into a sweep's folder.

    `pairs` are the methods' paired comparisons, written likewise as paired.md and so on; what methods cost as costs.md.
    Everything on the page that comes from the jobs is escaped.

    Returns:
        Path of the page: one file that needs no network, no script and no other file; it links to the jobs' reports.
    """
    grid, cost = compare(jobs), costs(jobs)
    write_text(sweep / "results.csv", as_csv(tidy_rows(jobs)))
    for title, table in (("table", grid), ("paired", pairs), ("costs", cost)):
        if table is not None:
            for name, text in (("md", table.markdown()), ("tex", table.latex()), ("html", table.html())):
                write_text(sweep / f"{title}.{name}", text)
    trades, responses = [*trade_plots(jobs)], [*response_plots(jobs)]
    for plot in (*trades, *responses):
        write_text(sweep / f"{plot.key}.svg", _standalone(plot.figure))
    counted = Counter(job.status for job in jobs)
    models = dict.fromkeys(str(job.metrics["model"]) for job in jobs if job.metrics.get("model"))
    page = template_of("sweep").render(
        style=read_template("style.css"),
        script=read_template("sort.js"),
        name=sweep.resolve().name,
        result=f"{counted['done']} of {count(len(jobs), 'job')} done",
        others=[f"{number} {status}" for status, number in counted.items() if status != "done"],
        models=list(models),
        drawn=any(model.startswith("mini") for model in models),
        spread=grid.caption,
        # Captions stand as sentences of the page, and not a second time inside the tables.
        table=grid._replace(caption="").html(),
        pairs=None if pairs is None else pairs._replace(caption="").html(),
        paired=None if pairs is None else pairs.caption,
        costs=None if cost is None else cost._replace(caption="").html(),
        cost=None if cost is None else cost.caption,
        trades=trades,
        responses=responses,
        doses=[*dose_plots(jobs)],
        jobs=[(job, (job.folder / "report.html").is_file(), seconds(job.seconds)) for job in jobs],
    )
    return write_text(sweep / "report.html", page)
