"""The single numbers of a row of metrics.json: what each is called, how it is written, and whether less is better."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from difflens.report.run_folder import Json, rows_of
from difflens.report.wording import NONE, known, number


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
        """What it is a variant of: `fd` for every distance from the target, else the first word of its key."""
        words = self.key.split("_")
        return "fd" if "fd" in words else words[0]

    def read(self, row: Json) -> float | None:
        """The row's number; None if it was not measured."""
        value = row.get(self.column)
        if self.of_prompts and not known(value):
            value = _mean(prompt.get(self.key) for prompt in (row.get("prompts") or {}).values())
        if self.key == WORST_LEAKAGE.key and not known(value):
            rates = [entry.get("flip_rate") for entry in (row.get("leakage") or {}).values()]
            value = max(filter(known, rates), default=None)
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


WORST_LEAKAGE = Measure(
    "worst_leakage", "leakage, worst", "%", 1, -1, "images in which the other attribute that suffered most changed"
)
"""Read off the leakage of every attribute; every list of measures ends with it."""

BUILT_IN = (
    Measure("fd", "FD, soft", "", 3, -1, "distance of the judge's mean softmax from the target; 0 is fair"),
    Measure("fd_hard", "FD, hard", "", 3, -1, "the same with every image counted as its most likely class"),
    Measure("fd_official", "FD, soft, as released", "", 3, -1, "by the paper's own code, from the judge's raw outputs"),
    Measure("fd_chance", "FD by chance", "", 3, 0, "expected hard FD of a perfectly fair sampler of as many images"),
    Measure("fd_squared_unbiased", "FD², unbiased", "", 4, -1, "without the sampling noise; may be negative"),
    Measure("intersectional_fd", "intersectional FD", "", 3, -1, "over the classes of all attributes together"),
    Measure("fid", "FID", "", 2, -1, "Fréchet distance to the reference images"),
    Measure("kid", "KID", "", 4, -1, "kernel distance to the reference images ± its spread over subsets"),
    Measure("clip_i", "CLIP-I", "", 4, 1, "cosine of each image with the same seed's unmitigated one"),
    Measure("clip_i_paper", "CLIP-I, (cos + 1) / 2", "", 4, 0, "the same on the paper's scale"),
    Measure("obeyed", "prompts obeyed", "%", 1, 1, "images that show what their prompt is about"),
    Measure("clip_t", "CLIP-T", "", 4, 1, "cosine of each image with its prompt"),
    Measure("clip_t_paper", "CLIP-T, (cos + 1) / 2", "", 4, 0, "the same on the paper's scale"),
    Measure("editing_precision", "editing precision", "", 2, 1, "mean logit change of the target over the others'"),
    Measure("judges_agree", "judges agree", "%", 1, 0, "on unedited images: who chose what to edit, and who scores"),
    Measure("edited", "images changed", "", 0, 0, "the others are left as they were"),
    Measure("reached", "of these, class reached", "%", 1, 1, "images that show the class asked for"),
    Measure("missing_faces", "images without a face", "", 0, 0, "in which the judge found none"),
    Measure("seconds_per_image", "seconds per image", "", 3, -1, ""),
)
"""The measures of runs whose metrics.json lists none."""

FD = BUILT_IN[1]
"""The measure of fairness that plots are drawn over."""


def measures_of(*runs: Json) -> list[Measure]:
    """The measures that at least one row of these metrics has, in reading order."""
    listed = {measure.key: measure for metrics in runs for measure in _listed(metrics)}
    rows = [row for metrics in runs for row in rows_of(metrics)]
    found = {version.column: version for measure in listed.values() for version in _versions(measure, rows)}
    return [measure for measure in found.values() if any(measure.read(row) is not None for row in rows)]


def _listed(metrics: Json) -> Iterator[Measure]:
    names = [field.name for field in fields(Measure) if field.name != "of_prompts"]
    entries = metrics.get("measures") or []
    for entry in entries:
        yield Measure(**{"label": entry["key"], **{name: entry[name] for name in names if name in entry}})
    yield from BUILT_IN if not entries else ()
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
    """A row's `fd`, `fd_hard` or `fd_chance`: where there are prompts, the mean of every prompt's own."""
    mean = Measure(key, key, of_prompts=True).read(row)
    return Measure(key, key).read(row) if mean is None else mean


def fairest(measures: Sequence[Measure]) -> Measure | None:
    """Hard FD among these measures: of prompts where there are some; None if it is not there."""
    return next((measure for measure in measures if measure.key == FD.key), None)


def prices(measures: Sequence[Measure]) -> list[Measure]:
    """What fairness may cost: the measures with a better end that are no distance from the target themselves."""
    return [measure for measure in measures if measure.better and measure.family != "fd"]


def _mean(values: Iterator[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else None


def largest_possible(measure: Measure, rows: Sequence[Json]) -> str:
    """The measure's meaning, with its upper limit where the rows know one (`fd_max` for `fd`)."""
    limit = next((row[f"{measure.key}_max"] for row in rows if known(row.get(f"{measure.key}_max"))), None)
    return measure.meaning + (f"; the largest possible is {number(limit, measure.digits)}" if limit is not None else "")
