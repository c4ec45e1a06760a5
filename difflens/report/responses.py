"""What the evaluation images show at every strength that a sweep tried, from the rows of its jobs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from difflens.report.axes import factors_of, strength_axis
from difflens.report.comparison import CLIP_I, FD, Cell, Measure, cells_of
from difflens.report.run_folder import Json
from difflens.report.sweep import Job
from difflens.report.sweep_figures import split_strength
from difflens.report.wording import METHOD_NAMES, fairness


class Response(NamedTuple):
    """One attribute under one setting of everything but the strength.

    Attributes:
        title: the attribute and the setting.
        data: what `draw_doses` draws: `axis`, `classes`, and `rows` in the order of strength, means over seeds.
    """

    title: str
    data: Json


def responses_of(jobs: Sequence[Job]) -> list[Response]:
    """A response for each attribute, method and setting that was measured at two strengths or more."""
    factors = factors_of(jobs)
    axis = strength_axis(factors)
    found: dict[tuple[str, ...], list[tuple[float, Cell]]] = {}
    for setting, cell in cells_of(jobs).items():
        series, strength = split_strength(factors, setting)
        if strength is not None and cell.rows:
            found.setdefault((_attribute(cell), *series), []).append((strength, cell))
    others = [key for key in factors if key != axis]
    return [
        Response(_title(others, name), {"axis": axis, "classes": _classes(line), "rows": _rows(line)})
        for name, line in found.items()
        if len({strength for strength, _ in line}) > 1
    ]


def _attribute(cell: Cell) -> str:
    return str(cell.jobs[0].metrics.get("attribute", ""))


def _title(others: Sequence[str], name: Sequence[str]) -> str:
    attribute, *values, method = name
    named = [f"{key}={value}" for key, value in zip(others, values, strict=True) if key != "attribute"]
    return ", ".join([attribute, METHOD_NAMES.get(method, method), *named])


def _classes(line: Sequence[tuple[float, Cell]]) -> list[str]:
    return [str(name) for name in line[0][1].jobs[0].metrics.get("classes") or []]


def _rows(line: Sequence[tuple[float, Cell]]) -> list[Json]:
    """Means over seeds, shaped as a row of metrics.json is."""
    return [
        {
            "dose": strength,
            "fd_hard": cell.mean(FD),
            "fd_chance": _mean(cell, lambda row: fairness(row, "fd_chance")),
            "clip_i": cell.mean(CLIP_I),
            "shares": _means(cell, "shares", "share"),
            "leakage": _means(cell, "leakage", "flip_rate"),
        }
        for strength, cell in sorted(line, key=lambda item: item[0])
    ]


def _means(cell: Cell, group: str, key: str) -> dict[str, Any]:
    """The mean of a number of every class, or of every other attribute."""
    names = dict.fromkeys(name for row in cell.rows.values() for name in row.get(group) or {})
    return {name: {key: _mean(cell, lambda row, name=name: _inside(row, group, name).get(key))} for name in names}


def _inside(row: Json, group: str, name: str) -> Json:
    found: Json = (row.get(group) or {}).get(name) or {}
    return found


def _mean(cell: Cell, read: Callable[..., float | None]) -> float | None:
    return cell.mean(Measure("", "", 0, 0, read))
