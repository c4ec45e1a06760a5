"""Published numbers beside measured ones; a difference is formed where what decides a number was alike."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from difflens.report.measures import METHOD_NAMES, NONE, Measure, measures_of, signed
from difflens.report.run_folder import Json, RunFolder, rows_of

INSTRUMENTS = {
    "judge": ("judge", "judge_protocol", "faces", "missing_faces"),
    "features": ("extractor", "resize", "reference"),
    "clip": ("clip",),
}
"""The conditions that decide what an instrument reads, and nothing else."""

READS = {"fd": "judge", "fid": "features", "kid": "features", "clip": "clip"}
"""The instrument that reads a family of measures off images; any other family takes all conditions to be alike."""

STATED = {"judge": ("judge",), "features": INSTRUMENTS["features"], "clip": ("clip",)}
"""Those of them without which numbers cannot be compared; of all others only what was published counts."""

OF_THE_METHOD = ("assignment",)
"""Conditions that decide nothing about unedited images."""


class Condition(NamedTuple):
    """How a condition was there and is here; the last is whether that is the same."""

    name: str
    there: str
    here: str
    same: bool


class Line(NamedTuple):
    """A measure's numbers, published and then measured, by method, and the differences, where formed."""

    label: str
    cells: tuple[str, ...]
    gaps: tuple[str, ...]


def beside_published(run: RunFolder) -> Mapping[str, Any] | None:
    """A line per measure, one per condition, and why differences are lacking; None for a run that compares with nothing."""
    published = run.metrics.get("published")
    if not published:
        return None
    methods = [str(row.get("method")) for row in rows_of(published)]
    there, here = ([_row(of, method) for method in methods] for of in (published, run.metrics))
    # Published rows bring no list of measures; they are read by this run's.
    listed = {"measures": run.metrics.get("measures"), "rows": [*there, *here]}
    measures = [measure for measure in measures_of(listed) if any(measure.read(row) is not None for row in there)]
    conditions = dict(_conditions(published, run.metrics, measures))
    differing = [[_differing(measure, conditions, method) for method in methods] for measure in measures]
    lines = [_line(*each, there, here) for each in zip(measures, differing, strict=True)]
    return {
        "source": published.get("source", ""),
        "methods": [METHOD_NAMES.get(method, method) for method in methods],
        "lines": lines,
        "conditions": list(conditions.values()),
        "barred": [words for each in zip(lines, differing, strict=True) for words in _barred(*each, methods)],
    }


def _row(metrics: Json, method: str) -> Json:
    return next((row for row in rows_of(metrics) if row.get("method") == method), {})


def _conditions(published: Json, metrics: Json, measures: Sequence[Measure]) -> Iterator[tuple[str, Condition]]:
    """Every condition that was published, and those that the measures need stated, by its key."""
    stated: Json = published.get("protocol") or {}
    here = {"model": metrics.get("model"), "n": metrics.get("n"), **(metrics.get("protocol") or {})}
    needed = [name for measure in measures for name in STATED.get(READS.get(measure.family, ""), ())]
    for name in dict.fromkeys([*stated, *needed]):
        value, found = stated.get(name), here.get(name)
        # What was not published counts as different: a distance to an unknown reference cannot be subtracted from.
        same = name in stated and _alike(value, found)
        yield name, Condition(name.replace("_", " "), _words(value), _words(found), same)


def _alike(there: Any, here: Any) -> bool:
    """Whether a condition is met; of a described one, such as FID's reference, its name or what was published of it."""
    if isinstance(here, Mapping):
        # A paper may name its reference and say nothing of its size or hash: only what it says is held against it.
        wanted = there if isinstance(there, Mapping) else {"name": there}
        return all(here.get(key) == value for key, value in wanted.items())
    return bool(there == here)


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("name", value))
    return NONE if value is None else str(value)


def _differing(measure: Measure, conditions: Mapping[str, Condition], method: str) -> list[str]:
    """The names of the conditions that decide a measure of a method's images and are not the same."""
    own = READS.get(measure.family)
    foreign = {name for instrument, names in INSTRUMENTS.items() if own and instrument != own for name in names}
    foreign |= {*OF_THE_METHOD} if method == "original" else set()
    return [condition.name for name, condition in conditions.items() if name not in foreign and not condition.same]


def _line(measure: Measure, differing: list[list[str]], there: list[Json], here: list[Json]) -> Line:
    cells = [measure.cell(row) for row in (*there, *here)]
    gaps = [
        NONE if bars else _gap(measure, measure.read(published), measure.read(measured))
        for bars, published, measured in zip(differing, there, here, strict=True)
    ]
    return Line(measure.label, tuple(cells), tuple(gaps))


def _gap(measure: Measure, there: float | None, here: float | None) -> str:
    return NONE if there is None or here is None else signed(measure.scale * (here - there), measure.digits)


def _barred(line: Line, differing: list[list[str]], methods: list[str]) -> Iterator[str]:
    """Why a measure has no difference though both numbers are there, once where that is the same for every method."""
    # Where a number is missing there is nothing to bar, and no reason to give.
    both = [NONE not in pair for pair in zip(line.cells[: len(methods)], line.cells[len(methods) :], strict=True)]
    lacking = {method: names for method, names, known in zip(methods, differing, both, strict=True) if known and names}
    if len(lacking) == len(methods) > 1 and all(names == differing[0] for names in differing):
        yield f"{line.label}: {', '.join(differing[0])}"
    else:
        for method, names in lacking.items():
            yield f"{line.label}, {METHOD_NAMES.get(method, method)}: {', '.join(names)}"
