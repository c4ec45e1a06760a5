"""One calibration at other settings: what transfer.json holds, in lines of a table and of a CSV file."""

from collections.abc import Iterator
from typing import Any

from difflens.report.measures import FD, NONE, fairness, known, number, percent
from difflens.report.run_folder import Json
from difflens.report.tables import Grid

PROMPTS = "prompts"
"""The axis that is none of the sampler's."""

EDITS = ("original", "transferred", "recalibrated")
"""The rows of a setting: without an edit, at the study's own strength, and at one calibrated there."""

COUNTED = ("reached", "nothing_else")
"""Shares of images, each with the ends of its interval."""

BESIDE = ("reached_unedited", "flips", "clip_i_edited", "clip_i_floor", "fid")


def axes_of(data: Json) -> dict[str, list[Json]]:
    """The settings by what they vary, each in the order of its values with the study itself among them.

    Words keep the order in which they were asked for, behind the study's own.
    """
    found: dict[str, list[Json]] = {}
    for setting in data["settings"]:
        # The study is its own calibration, so that both curves go through it.
        own = {**data["rows"], "recalibrated": data["rows"]["transferred"]}
        study = {"axis": setting["axis"], "value": setting["studied"], "rows": own, "is_study": True}
        found.setdefault(setting["axis"], [study]).append(setting)
    for settings in found.values():
        if all(known(setting["value"]) for setting in settings):
            settings.sort(key=lambda setting: setting["value"])
    return found


def tidy_settings(data: Json) -> list[dict[str, Any]]:
    """A line for every setting and edit; the study itself stands once, with neither axis nor value."""
    study = {"axis": "", "value": "", "rows": data["rows"], "strength": None}
    return [line for setting in (study, *data["settings"]) for line in _lines(data, setting)]


def _lines(data: Json, setting: Json) -> Iterator[dict[str, Any]]:
    used = {"original": None, "transferred": data["strength"], "recalibrated": setting["strength"]}
    for edit in EDITS:
        row = setting["rows"].get(edit)
        if row is None:
            continue
        ends = {f"{name}{end}": row.get(f"{name}{end}") for name in COUNTED for end in ("", "_low", "_high")}
        yield {
            **{"axis": setting["axis"], "value": setting["value"], "edit": edit, "n": row.get("n")},
            **{f"strength {name}": value for name, value in (used[edit] or {}).items()},
            **{key: fairness(row, key) for key in (FD.key, "fd_low", "fd_high")},
            **ends,
            **{name: row.get(name) for name in BESIDE},
        }


def sentence(setting: Json) -> str:
    """What one setting gave, in a line."""
    rows = [setting["rows"][edit] for edit in EDITS if setting["rows"][edit] is not None]
    fd = " → ".join(number(fairness(row, FD.key), 3) for row in rows)
    reached = " → ".join(percent(row.get("reached")) for row in rows[1:])
    words = "without an edit → with it" + (" → calibrated there" if len(rows) > 2 else "")
    return f"{setting['axis']}={setting['value']}: FD hard {fd} ({words}); class reached {reached}"


def setting_table(data: Json) -> Grid:
    """A line for each setting: without an edit, with the study's own strength, and with one calibrated there."""
    lines = []
    for axis, settings in axes_of(data).items():
        for setting in settings:
            rows = setting["rows"]
            anew = None if setting.get("is_study") else rows["recalibrated"]
            fds = [_ended(fairness(rows["original"], FD.key), rows["original"], "fd")]
            fds += [
                NONE if row is None else _ended(fairness(row, FD.key), row, "fd") for row in (rows["transferred"], anew)
            ]
            shares = [
                NONE if row is None else _percent(row, name) for name in COUNTED for row in (rows["transferred"], anew)
            ]
            lines.append([axis, f"{setting['value']}{' (study)' * bool(setting.get('is_study'))}", *fds, *shares])
    header = ["varied", "to", "FD hard, no edit", "FD hard", "calibrated there", "class reached", "calibrated there"]
    return Grid([*header, "nothing else changed", "calibrated there"], lines, numbers=7)


def _ended(value: float | None, row: Json, name: str) -> str:
    low, high = (row.get(f"{name}_{end}") for end in ("low", "high"))
    ends = f" ({number(low, 3)}–{number(high, 3)})" if known(low) and known(high) else ""
    return f"{number(value, 3)}{ends}"


def _percent(row: Json, name: str) -> str:
    low, high = (row.get(f"{name}_{end}") for end in ("low", "high"))
    ends = f" ({number(100 * low, 1)}–{number(100 * high, 1)})" if known(low) and known(high) else ""
    return f"{percent(row.get(name))}{ends}"
