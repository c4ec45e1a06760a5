"""Numbers and results in words."""

import math
from collections.abc import Sequence
from typing import Any

from difflens.report.run_folder import Json

NONE = "\N{EN DASH}"
"""What a table shows where nothing was measured."""

METHOD_NAMES = {"difflens": "DiffLens"}


def number(value: Any, digits: int) -> str:
    """A number with so many decimals, a minus sign that prints well, and a dash for one that was not measured."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return NONE
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(value: Any, digits: int = 1) -> str:
    """A share in percent."""
    return f"{number(100 * value, digits)} %" if isinstance(value, int | float) and math.isfinite(value) else NONE


def interval(share: Json) -> str:
    """A share in percent with its interval."""
    if share.get("low") is None or share.get("high") is None:
        return percent(share.get("share"))
    low, high = number(100 * share["low"], 1), number(100 * share["high"], 1)
    return f"{percent(share.get('share'))} ({low}\N{EN DASH}{high})"


def points(change: Any) -> str:
    """A signed change of a share in percentage points."""
    if not isinstance(change, int | float) or not math.isfinite(change):
        return NONE
    return ("+" if change > 0 else "") + number(100 * change, 1)


def seconds(value: Any) -> str:
    """A duration in its natural unit."""
    if not isinstance(value, int | float) or not math.isfinite(value):
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


def rows_of(metrics: Json) -> Sequence[Json]:
    """The rows of metrics.json, one per method."""
    return [row for row in metrics.get("rows") or [] if isinstance(row, dict)]


def baseline(metrics: Json) -> Json | None:
    """The row of the unmitigated model."""
    return next((row for row in rows_of(metrics) if row.get("method") == "original"), None)


def mitigated(metrics: Json) -> Json | None:
    """The row the report is about: DiffLens, or else the last method that is not the original."""
    rows = [row for row in rows_of(metrics) if row.get("method") != "original"]
    return next((row for row in rows if row.get("method") == "difflens"), rows[-1] if rows else None)


def fairness(row: Json, key: str) -> float | None:
    """A row's `fd`, `fd_hard` or `fd_chance`: where there are prompts, the mean of every prompt's own."""
    prompts = [prompt.get(key) for prompt in (row.get("prompts") or {}).values()]
    found: list[float | None] = prompts or [row.get(key)]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None


def result_sentence(metrics: Json) -> str:
    """The run's result in one sentence."""
    before, after = baseline(metrics), mitigated(metrics)
    first = before or after
    if first is None:
        return "This run has no result yet."
    fd = " → ".join(number(fairness(row, "fd"), 3) for row in (before, after) if row is not None)
    prompts = first.get("prompts") or {}
    mean = f", the mean of {count(len(prompts), 'prompt')}," if prompts else ""
    sentence = f"{metrics.get('attribute', 'attribute')}: FD {fd}{mean}"
    n = metrics.get("n", first.get("n"))
    sentence += f" over {count(n, 'image')}" if isinstance(n, int) else ""
    edited = (after or {}).get("edited")
    if isinstance(edited, int):
        sentence += f"; {count(edited, 'image')} {'was' if edited == 1 else 'were'} changed"
    return f"{sentence}."


def chance_sentence(metrics: Json) -> str:
    """How the result compares with the FD that a perfectly fair sampler shows by chance; empty if not measured."""
    after = mitigated(metrics) or {}
    fd, chance = fairness(after, "fd_hard"), fairness(after, "fd_chance")
    if fd is None or chance is None:
        return ""
    verdict = "at or below" if fd <= chance else "above"
    return (
        f"Counting each image as its most likely class, {method_name(after)} has FD {number(fd, 3)}, {verdict} the "
        f"{number(chance, 3)} that a perfectly fair sampler shows by chance with as many images."
    )
