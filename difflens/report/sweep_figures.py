"""What a sweep's settings trade: fairness against quality, and against everything else that an image shows."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from difflens.report.axes import factors_of, strength_axis, strength_of
from difflens.report.comparison import CLIP_I, FD, FID, LEAKAGE, Measure, Setting, cells_of
from difflens.report.palette import INK, class_styles
from difflens.report.sweep import Job

TRADES = (FID, CLIP_I, LEAKAGE)


class Point(NamedTuple):
    """One setting in a plane of two measures.

    Attributes:
        series: what it shares with the points that its line connects: everything but the strength, if that is a number.
        attribute: the attribute under study.
        original: whether it is the unmitigated model.
        strength: of the edit, for the order on the line; 0 if it was not varied or is no number.
        x: hard FD.
        y: the other measure.
    """

    series: Setting
    attribute: str
    original: bool
    strength: float
    x: float
    y: float


def points_of(jobs: Sequence[Job], measure: Measure) -> list[Point]:
    """The settings that have both hard FD and the measure, series by series in the order of strength."""
    factors = factors_of(jobs)
    points = []
    for setting, cell in cells_of(jobs).items():
        x, y = cell.mean(FD), cell.mean(measure)
        if x is not None and y is not None:
            series, strength = split_strength(factors, setting)
            attribute = str(cell.jobs[0].metrics.get("attribute", ""))
            points.append(Point(series, attribute, setting[-1] == "original", strength or 0.0, x, y))
    return sorted(points, key=lambda point: (point.series, point.strength))


def split_strength(factors: Sequence[str], setting: Setting) -> tuple[Setting, float | None]:
    """A setting's series and its strength; a strength that is no number, such as `auto`, belongs to the series."""
    axis = strength_axis(factors)
    value = None if axis is None else setting[factors.index(axis)]
    strength = strength_of(value)
    others = (found for key, found in zip((*factors, "method"), setting, strict=True) if key != axis)
    return (setting, None) if strength is None else (tuple(others), strength)


def front(points: Sequence[Point], *, better: int) -> list[Point]:
    """The points that no other one beats: with less FD and no worse in the measure, or as fair and better in it."""

    def beats(one: Point, other: Point) -> bool:
        gain = better * (one.y - other.y)
        return one.x <= other.x and gain >= 0 and (one.x < other.x or gain > 0)

    return [point for point in points if not any(beats(other, point) for other in points)]


def draw_trade(figure: Figure, points: Sequence[Point], *, measure: Measure) -> None:
    """Hard FD against a measure: one line per series over the strength, the points that nothing beats ringed."""
    axes = figure.subplots()
    styles: dict[str, dict[str, Any]] = dict(class_styles(list(dict.fromkeys(point.attribute for point in points))))
    for _, group in groupby(points, key=lambda point: point.series):
        line = list(group)
        style = styles[line[0].attribute]
        (drawn,) = axes.plot([p.x for p in line], [p.y for p in line], **style)
        if line[0].original:
            drawn.set_markerfacecolor("white")
    for name, style in styles.items():
        best = front([point for point in points if point.attribute == name], better=measure.better)
        axes.scatter([p.x for p in best], [p.y for p in best], s=90, facecolors="none", edgecolors=INK, linewidths=0.9)
        axes.plot([], [], **style, label=name)
    axes.set(xlabel="FD hard (0 is fair)", ylabel=measure.label)
    figure.legend(loc="outside upper left", ncols=4)


def dose_jobs(jobs: Sequence[Job]) -> Mapping[str, Job]:
    """The first job with a calibration of each attribute."""
    found: dict[str, Job] = {}
    for job in jobs:
        if job.dose and job.dose.get("points") and job.metrics.get("classes"):
            found.setdefault(str(job.metrics.get("attribute")), job)
    return found
