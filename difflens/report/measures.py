"""The single numbers of a row of metrics.json: what each is called, how it is written, and whether less is better."""

import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeGuard

from difflens.report.run_folder import Json, rows_of

NONE = "\N{EN DASH}"
"""What a table shows where nothing was measured."""

METHOD_NAMES = {"difflens": "DiffLens"}


def known(value: Any) -> TypeGuard[float]:
    """Whether this is a number that was measured."""
    # metrics.json has null for what was not measured or is not defined.
    return isinstance(value, int | float) and math.isfinite(value)


def number(value: Any, digits: int) -> str:
    """A number with so many decimals, a minus sign that prints well, and a dash for one that was not measured."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}") if known(value) else NONE


def percent(value: Any, digits: int = 1) -> str:
    """A share in percent."""
    return f"{number(100 * value, digits)} %" if known(value) else NONE


def interval(share: Json) -> str:
    """A share in percent with its interval."""
    if share.get("low") is None or share.get("high") is None:
        return percent(share.get("share"))
    low, high = number(100 * share["low"], 1), number(100 * share["high"], 1)
    return f"{percent(share.get('share'))} ({low}\N{EN DASH}{high})"


def signed(change: Any, digits: int) -> str:
    """A change with its sign."""
    return ("+" if known(change) and change > 0 else "") + number(change, digits)


def points(changes: Json) -> str:
    """Changes of shares in percentage points, by name."""
    return ", ".join(f"{name} {signed(100 * by, 1) if known(by) else NONE}" for name, by in changes.items())


def seconds(value: Any) -> str:
    """A duration in its natural unit."""
    if not known(value):
        return NONE
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def count(n: int, noun: str) -> str:
    """A number of things: 1 image, 2 images."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def method_name(row: Json) -> str:
    """How a table calls a row's method."""
    method = str(row.get("method", "unnamed"))
    return METHOD_NAMES.get(method, method)


@dataclass(frozen=True)
class Measure:
    """A number that every row may have.

    Attributes:
        key: where it stands in a row.
        label: what it is called.
        unit: `%` for a fraction that is shown a hundredfold; any other is put behind the number.
        digits: decimals shown.
        better: -1 where less is better, 1 where more is, 0 where neither is.
        meaning: one phrase.
        of_prompts: whether it is the mean of every prompt's own number instead of that of all images together.
    """

    key: str
    label: str
    unit: str = ""
    digits: int = 3
    better: int = 0
    meaning: str = ""
    of_prompts: bool = False

    DESCRIBED: ClassVar = ("label", "unit", "digits", "better", "meaning")
    """What a list says of each."""

    @classmethod
    def described(cls, key: Any, entry: Any, *, where: str) -> "Measure":
        """The measure that an entry of a list describes.

        Raises:
            ValueError: with its place, what it must be, and what it is.
        """
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z]\w*", key):
            raise ValueError(f"{where}: a key is a word of letters, digits and '_', got {key!r}.")
        if not isinstance(entry, Mapping):
            words = ", ".join(cls.DESCRIBED)
            raise ValueError(f"{where}.{key} must have {words}, got {entry!r}; ~{where}.{key} leaves it out.")
        # An absent label is refused below like a wrong one, with the place where it belongs.
        found = {"label": None, "unit": "", "digits": 3, "better": 0, "meaning": "", **entry}
        allowed: dict[str, tuple[bool, str]] = {
            "label": (isinstance(found["label"], str) and bool(found["label"].strip()), "a text that is not empty"),
            "unit": (isinstance(found["unit"], str), "a text"),
            # `type … is int`: to Python True is an int, and YAML reads `yes` as True.
            "digits": (type(found["digits"]) is int and 0 <= found["digits"] <= 15, "a whole number from 0 to 15"),
            "better": (type(found["better"]) is int and found["better"] in (-1, 0, 1), "-1 (less), 0 or 1 (more)"),
            "meaning": (isinstance(found["meaning"], str), "a text"),
        }
        for name, value in found.items():
            holds, words = allowed.get(name, (False, f"left out: only {', '.join(cls.DESCRIBED)} are read"))
            if not holds:
                raise ValueError(f"{where}.{key}.{name} must be {words}, got {value!r}.")
        return cls(key, **found)

    @property
    def heading(self) -> str:
        """The label, with an arrow towards what is better."""
        return f"{self.label}{('', ' ↑', ' ↓')[self.better]}"

    @property
    def scale(self) -> int:
        """What the number is shown times."""
        return 100 if self.unit == "%" else 1

    @property
    def column(self) -> str:
        """The key under which a row or a tracker has the number flat."""
        return f"{self.key}_prompt_mean" if self.of_prompts else self.key

    @property
    def family(self) -> str:
        """What it is a variant of: `fd` for everything that shares alone decide, else the first word of its key."""
        words = self.key.split("_")
        return "fd" if "fd" in words or self.key in OF_SHARES else words[0]

    def read(self, row: Json) -> float | None:
        """The row's number; None if it was not measured."""
        # A row may have the mean itself; else it is formed of what the prompts have.
        value = row.get(self.column)
        if self.of_prompts and not known(value):
            value = mean(prompt.get(self.key) for prompt in (row.get("prompts") or {}).values())
        if self.key == WORST_LEAKAGE.key and not known(value):
            rates = [entry.get("flip_rate") for entry in (row.get("leakage") or {}).values()]
            value = max(filter(known, rates), default=None)
        if self.key == SOMETHING_ELSE.key and known(row.get("nothing_else")):
            value = 1 - row["nothing_else"]
        return value if known(value) else None

    def shown(self, values: Sequence[float | None]) -> str:
        """A number, or the second one as what it may vary by behind it, in the measure's unit."""
        if not known(values[0]):
            return NONE
        words = [number(self.scale * value, self.digits) for value in values if value is not None]
        return " ± ".join(words) + (f" {self.unit}" if self.unit else "")

    def cell(self, row: Json) -> str:
        """The row's number, with its spread where the row has one (`kid_sd` for `kid`)."""
        return self.shown([self.read(row), row.get(f"{self.column}_sd")])


OF_SHARES = ("deviation_ratio", "entropy", "l1", "kl")
"""Other names that the literature has for how fair shares are."""

WORST_LEAKAGE = Measure(
    "worst_leakage", "leakage, worst", "%", 1, -1, "images in which the other attribute that suffered most changed"
)
"""Read off the leakage of every attribute; every list of measures ends with it."""

SOMETHING_ELSE = Measure(
    "something_else", "something else changed", "%", 1, -1, "edited images in which another attribute changed"
)
"""What `nothing_else` leaves of all edited images; plots show it, in which less is then better along both axes."""

FD = Measure("fd_hard", "FD, hard", better=-1)
"""The measure of fairness that plots are drawn over, as it is called where no list says so."""


def measures_of(*runs: Json) -> list[Measure]:
    """The measures that at least one row of these metrics has, in reading order."""
    listed = {measure.key: measure for metrics in runs for measure in _listed(metrics)}
    rows = [row for metrics in runs for row in rows_of(metrics)]
    # By column, since a measure of prompts and the pooled one share their key.
    found = {version.column: version for measure in listed.values() for version in _versions(measure, rows)}
    return [measure for measure in found.values() if any(measure.read(row) is not None for row in rows)]


def _listed(metrics: Json) -> Iterator[Measure]:
    for entry in metrics.get("measures") or []:
        about = {name: entry[name] for name in Measure.DESCRIBED if name in entry}
        yield Measure(entry["key"], **{"label": entry["key"], **about})
    if not metrics.get("measures"):
        # Without a list nothing measured is hidden: every number is shown under its own key.
        numbers = dict.fromkeys(key for row in rows_of(metrics) for key, value in row.items() if known(value))
        yield from (Measure(key, key) for key in numbers)
    yield WORST_LEAKAGE


def _versions(measure: Measure, rows: Sequence[Json]) -> Iterator[Measure]:
    """A distance from the target stands twice where prompts have one each: all images together may hide what each does."""
    own = replace(measure, label=f"{measure.label}, mean over prompts", of_prompts=True)
    if measure.family != "fd" or all(own.read(row) is None for row in rows):
        yield measure
    else:
        yield own
        yield replace(measure, label=f"{measure.label}, prompts pooled")


def fairness(row: Json, key: str) -> float | None:
    """A row's FD of some kind, or an end of its interval: where there are prompts, the mean of every prompt's own."""
    of_prompts = Measure(key, key, of_prompts=True).read(row)
    return Measure(key, key).read(row) if of_prompts is None else of_prompts


def fairest(measures: Sequence[Measure]) -> Measure | None:
    """Hard FD among these measures: of prompts where there are some; None if it is not there."""
    return next((measure for measure in measures if measure.key == FD.key), None)


def prices(measures: Sequence[Measure]) -> list[Measure]:
    """What fairness may cost: the measures with a better end that are no distance from the target themselves."""
    return [measure for measure in measures if measure.better and measure.family != "fd"]


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what was measured; None if nothing was."""
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else None


def largest_possible(measure: Measure, rows: Sequence[Json]) -> str:
    """The measure's meaning, with its upper limit where the rows know one (`fd_max` for `fd`)."""
    limit = next((row[f"{measure.key}_max"] for row in rows if known(row.get(f"{measure.key}_max"))), None)
    return measure.meaning + (f"; the largest possible is {number(limit, measure.digits)}" if limit is not None else "")
