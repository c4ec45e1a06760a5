"""The comparison of a sweep's jobs: mean ± standard deviation over seeds, and what is missing."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from difflens.report.axes import factors_of, moves_originals, seeds_of, spread_sentence
from difflens.report.formats import Grid
from difflens.report.run_folder import Json
from difflens.report.sweep import Job
from difflens.report.wording import METHOD_NAMES, NONE, fairness, number, rows_of


class Measure(NamedTuple):
    """A column of the comparison; `better` is -1 where less is better, 1 where more is, 0 where neither is."""

    key: str
    label: str
    digits: int
    better: int
    read: Callable[[Json], float | None]


def _plain(key: str, label: str, digits: int, better: int) -> Measure:
    return Measure(key, label, digits, better, lambda row: row.get(key))


def worst_leakage(row: Json) -> float | None:
    """The largest share of all images, in percent, in which some other attribute changed."""
    rates = [entry.get("flip_rate") for entry in (row.get("leakage") or {}).values()]
    return max((100 * rate for rate in rates if rate is not None), default=None)


def _fairness(key: str, label: str) -> Measure:
    return Measure(key, label, 3, -1, lambda row: fairness(row, key))


def _pooled(row: Json) -> float | None:
    return row.get("fd_hard") if row.get("prompts") else None


FD, LEAKAGE = _fairness("fd_hard", "FD hard ↓"), Measure("leakage", "leakage, worst % ↓", 1, -1, worst_leakage)
FID, CLIP_I = _plain("fid", "FID ↓", 2, -1), _plain("clip_i", "CLIP-I ↑", 4, 1)
MEASURES = (
    FD,
    _fairness("fd", "FD soft ↓"),
    Measure("fd_pooled", "FD hard, prompts pooled ↓", 3, -1, _pooled),
    FID,
    _plain("kid", "KID ↓", 4, -1),
    CLIP_I,
    _plain("clip_t", "CLIP-T ↑", 4, 1),
    LEAKAGE,
    _plain("edited", "edited", 0, 0),
)


@dataclass
class Cell:
    """What one setting gave: the jobs that were asked for it, and the results by seed."""

    jobs: list[Job] = field(default_factory=list)
    rows: dict[tuple[str, ...], Json] = field(default_factory=dict)

    def values(self, measure: Measure) -> list[float]:
        """The measure of every seed."""
        read = (measure.read(row) for row in self.rows.values())
        return [float(value) for value in read if value is not None]

    def mean(self, measure: Measure) -> float | None:
        """The measure's mean over seeds; None if it was not measured."""
        values = self.values(measure)
        return statistics.fmean(values) if values else None

    def shown(self, measure: Measure) -> str:
        """Mean ± standard deviation over seeds (of a sample; none for one seed)."""
        values = self.values(measure)
        if not values:
            return NONE
        mean = number(statistics.fmean(values), measure.digits)
        return f"{mean} ± {number(statistics.stdev(values), measure.digits)}" if len(values) > 1 else mean


Setting = tuple[str, ...]
"""The values of the factors, then the method."""


def cells_of(jobs: Sequence[Job]) -> dict[Setting, Cell]:
    """The results by setting: seeds are pooled, and the unmitigated images stand once for all that cannot change them.

    A job without results gives a cell without rows, whose method is empty, unless another seed of its setting has some.
    """
    factors, seeds = factors_of(jobs), seeds_of(jobs)
    cells: dict[Setting, Cell] = {}
    for job in jobs:
        for row in rows_of(job.metrics) or [{}]:
            method = str(row.get("method", ""))
            asked = {key: value for key, value in job.overrides.items() if method != "original" or moves_originals(key)}
            cell = cells.setdefault((*(asked.get(key, NONE) for key in factors), method), Cell())
            cell.jobs.append(job)
            if row:
                cell.rows.setdefault(tuple(asked.get(key, "") for key in seeds), row)
    return _without_known(cells)


def _without_known(cells: Mapping[Setting, Cell]) -> dict[Setting, Cell]:
    """The cells, where jobs without results join the cell of their setting that has some."""
    found = {setting: cell for setting, cell in cells.items() if cell.rows}
    for setting, cell in cells.items():
        if not cell.rows:
            same = [other for other in found if other[:-1] == setting[:-1] and other[-1] != "original"]
            for other in same:
                found[other].jobs.extend(cell.jobs)
            if not same:
                found[setting] = cell
    return found


def compare(jobs: Sequence[Job]) -> Grid:
    """The table of all settings: factors, method, measures that at least one setting has, and how many seeds."""
    cells = cells_of(jobs)
    measures = [measure for measure in MEASURES if any(cell.values(measure) for cell in cells.values())]
    header = [*factors_of(jobs), "method", *(measure.label for measure in measures), "runs"]
    rows = [[*_named(setting), *_body(cell, measures)] for setting, cell in sorted(cells.items(), key=_order)]
    prompted = any(row.get("prompts") for cell in cells.values() for row in cell.rows.values())
    caption = [spread_sentence(jobs), *["Where there are prompts, FD is the mean of every prompt's own."] * prompted]
    return Grid(header, rows, numbers=len(measures) + 1, caption=" ".join(caption))


def _order(item: tuple[Setting, Cell]) -> tuple[int, int]:
    """Settings in the order of their jobs, the unmitigated images first."""
    (*_, method), cell = item
    first = min(int(job.name) if job.name.isdigit() else 0 for job in cell.jobs)
    return first, int(method != "original")


def _named(setting: Setting) -> list[str]:
    *values, method = setting
    return [*values, METHOD_NAMES.get(method, method) or "missing"]


def _body(cell: Cell, measures: Sequence[Measure]) -> list[str]:
    if not cell.rows:
        return [*["missing"] * len(measures), "; ".join(f"job {job.name}: {job.status}" for job in cell.jobs)]
    asked = len({job.name for job in cell.jobs})
    lacking = [job for job in cell.jobs if not job.metrics]
    runs = f"{len(cell.rows)}" if not lacking else f"{asked - len(lacking)} of {asked}"
    return [*(cell.shown(measure) for measure in measures), runs]
