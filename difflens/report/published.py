"""Published numbers beside measured ones; a difference is formed where what decides a number was alike."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from difflens.report.run_folder import Json, RunFolder
from difflens.report.wording import METHOD_NAMES, NONE, baseline, mitigated, number


class Compared(NamedTuple):
    """A measure: what it is called, and the instrument that reads it off images."""

    label: str
    instrument: str


MEASURES = {
    "fd": Compared("FD, soft", "judge"),
    "fd_official": Compared("FD, soft, as released", "judge"),
    "fd_prompt_mean": Compared("FD, soft, mean over prompts", "judge"),
    "fd_official_prompt_mean": Compared("FD, soft, as released, mean over prompts", "judge"),
    "fid": Compared("FID", "features"),
    "clip_i_paper": Compared("CLIP-I, (cos + 1) / 2", "clip"),
    "clip_t_paper": Compared("CLIP-T, (cos + 1) / 2", "clip"),
}
"""What is compared, by its key in a row of metrics.json."""

INSTRUMENTS = {
    "judge": ("judge", "judge_protocol", "faces", "missing_faces"),
    "features": ("extractor", "resize", "reference"),
    "clip": ("clip",),
}
"""The conditions that decide what an instrument reads, and nothing else."""

STATED = {"judge": ("judge",), "features": INSTRUMENTS["features"], "clip": ("clip",)}
"""Those of them without which numbers cannot be compared; of all others only what was published counts."""

OF_THE_METHOD = ("assignment",)
"""Conditions that decide nothing about unedited images."""

ROWS = ("original", METHOD_NAMES["difflens"])


class Condition(NamedTuple):
    """How a condition was there and is here; the last is whether that is the same."""

    name: str
    there: str
    here: str
    same: bool


class Line(NamedTuple):
    """A measure's numbers, published and measured, without and with the method, and the differences, where formed."""

    label: str
    cells: tuple[str, ...]
    gaps: tuple[str, ...]


def beside_published(run: RunFolder) -> Mapping[str, Any] | None:
    """A line per measure, one per condition, and why differences are lacking; None for a run that compares with nothing."""
    published = run.metrics.get("published")
    if not published:
        return None
    there = {**run.metrics, "rows": published.get("rows") or []}
    rows = [find(of) or {} for of in (there, run.metrics) for find in (baseline, mitigated)]
    keys = [key for key in MEASURES if any(row.get(key) is not None for row in rows)]
    conditions = {name: condition for name, condition in _conditions(published, run.metrics, keys)}
    differing = {key: [_differing(key, conditions, edited=edited) for edited in (False, True)] for key in keys}
    return {
        "source": published.get("source", ""),
        "lines": [_line(key, rows, differing[key]) for key in keys],
        "conditions": list(conditions.values()),
        "barred": [words for key in keys for words in _barred(key, rows, differing[key])],
    }


def _conditions(published: Json, metrics: Json, keys: list[str]) -> Iterator[tuple[str, Condition]]:
    """Every condition that was published, and those that the measures need stated, by its key."""
    stated: Json = published.get("protocol") or {}
    here = {"model": metrics.get("model"), "n": metrics.get("n"), **(metrics.get("protocol") or {})}
    needed = [name for key in keys for name in STATED[MEASURES[key].instrument]]
    for name in dict.fromkeys([*stated, *needed]):
        value, found = stated.get(name), here.get(name)
        same = name in stated and _alike(value, found)
        yield name, Condition(name.replace("_", " "), _words(value), _words(found), same)


def _alike(there: Any, here: Any) -> bool:
    """Whether a condition is met; of a described one, such as FID's reference, its name or what was published of it."""
    if isinstance(here, Mapping):
        wanted = there if isinstance(there, Mapping) else {"name": there}
        return all(here.get(key) == value for key, value in wanted.items())
    return bool(there == here)


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("name", value))
    return NONE if value is None else str(value)


def _differing(key: str, conditions: Mapping[str, Condition], *, edited: bool) -> list[str]:
    """The names of the conditions that decide a measure of the original's or the method's images and are not the same."""
    own = MEASURES[key].instrument
    foreign = {name for instrument, names in INSTRUMENTS.items() if instrument != own for name in names}
    foreign |= set() if edited else set(OF_THE_METHOD)
    return [condition.name for name, condition in conditions.items() if name not in foreign and not condition.same]


def _line(key: str, rows: list[Json], differing: list[list[str]]) -> Line:
    cells = [row.get(key) for row in rows]
    gaps = [NONE if differing[i] else _gap(cells[2 + i], cells[i]) for i in (0, 1)]
    return Line(MEASURES[key].label, tuple(number(cell, 3) for cell in cells), tuple(gaps))


def _gap(here: float | None, there: float | None) -> str:
    if here is None or there is None:
        return NONE
    return ("+" if here > there else "") + number(here - there, 3)


def _barred(key: str, rows: list[Json], differing: list[list[str]]) -> Iterator[str]:
    """Why a measure has no difference though both numbers are there, once where both rows lack it for the same reason."""
    lacking = [i for i in (0, 1) if differing[i] and rows[i].get(key) is not None and rows[2 + i].get(key) is not None]
    if len(lacking) == 2 and differing[0] == differing[1]:
        yield f"{MEASURES[key].label}: {', '.join(differing[0])}"
        return
    for i in lacking:
        yield f"{MEASURES[key].label}, {ROWS[i]}: {', '.join(differing[i])}"
