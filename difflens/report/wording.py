"""Numbers in words, for tables, pages and plots alike."""

import math
from typing import Any

from difflens.report.run_folder import Json

NONE = "\N{EN DASH}"
"""What a table shows where nothing was measured."""

METHOD_NAMES = {"difflens": "DiffLens"}


def known(value: Any) -> bool:
    """Whether this is a number that was measured."""
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
