"""One calibration at other settings: what transfer.json holds, in lines of a table, of a CSV file and as a plot."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from difflens.report.figures import FAINT, OKABE_ITO, inner, series
from difflens.report.measures import FD, NONE, fairness, interval, known, number, percent
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
            rows, is_study = setting["rows"], bool(setting.get("is_study"))
            edited = (rows["transferred"], None if is_study else rows["recalibrated"])
            fds = [NONE if row is None else _discrepancy(row) for row in (rows["original"], *edited)]
            shares = [NONE if row is None else _share(row, name) for name in COUNTED for row in edited]
            lines.append([axis, f"{setting['value']}{' (study)' * is_study}", *fds, *shares])
    header = ["varied", "to", "FD hard, no edit", "FD hard", "calibrated there", "class reached", "calibrated there"]
    return Grid([*header, "nothing else changed", "calibrated there"], lines, numbers=7)


def _discrepancy(row: Json) -> str:
    low, high = row.get("fd_low"), row.get("fd_high")
    ends = f" ({number(low, 3)}–{number(high, 3)})" if known(low) and known(high) else ""
    return f"{number(fairness(row, FD.key), 3)}{ends}"


def _share(row: Json, name: str) -> str:
    return interval({"share": row.get(name), "low": row.get(f"{name}_low"), "high": row.get(f"{name}_high")})


TRANSFERRED = (
    ("original", "without an edit", {"color": FAINT, "marker": "o", "markerfacecolor": "white", "ls": ":"}),
    ("transferred", "the study's own strength", {"color": OKABE_ITO[0], "marker": "o"}),
    ("recalibrated", "calibrated there", {"color": OKABE_ITO[1], "marker": "s", "ls": "--"}),
)
"""The curves of `draw_transfer`."""

PANELS = (
    ("FD hard", 1, FD.key, "fd"),
    ("class reached (%)", 100, "reached", "reached"),
    ("nothing else changed (%)", 100, "nothing_else", "nothing_else"),
)
"""Its rows: the title, what the number is shown times, its key, and the beginning of its ends' keys."""


def transfer_size(data: Json) -> tuple[float, float]:
    """The size of the plot of `draw_transfer` in inches: a column for each axis."""
    return max(5.2, 1.2 + 2.7 * len(axes_of(data))), 7.0


def draw_transfer(figure: Figure, data: Json) -> None:
    """FD, reach and what is left alone, with 95 % intervals, over each setting that was varied; dotted: the study's own."""
    axes = axes_of(data)
    panels = figure.subplots(len(PANELS), len(axes), squeeze=False, sharex="col", sharey="row")
    for column, (name, settings) in enumerate(axes.items()):
        # By place: guidance 1 to 12 and 10 to 50 steps are as good as words, evenly apart.
        places = np.arange(len(settings), dtype=float)
        for line, (title, scale, key, ends) in enumerate(PANELS):
            panel = panels[line, column]
            for number_of, (edit, label, style) in enumerate(TRANSFERRED):
                rows = [setting["rows"].get(edit) for setting in settings]
                middle = scale * series([None if row is None else fairness(row, key) for row in rows])
                if edit == "original" and key == "reached":
                    # Who was to be pushed is known of the edit's row alone.
                    middle = scale * inner([setting["rows"]["transferred"] for setting in settings], "reached_unedited")
                low, high = (scale * inner(rows, f"{ends}_{end}") for end in ("low", "high"))
                # Such as what changes without an edit.
                if np.isnan(middle).all():
                    continue
                error = np.nan_to_num(np.stack([middle - low, high - middle])).clip(0)
                # Beside each other, so that no interval hides another.
                panel.errorbar(places + 0.08 * (number_of - 1), middle, yerr=error, capsize=2.5, label=label, **style)
            panel.axvline(
                next(i for i, each in enumerate(settings) if each.get("is_study")), color=FAINT, ls=":", lw=1.4
            )
            if column == 0:
                panel.set_ylabel(title)
        panels[-1, column].set_xticks(places, [f"{setting['value']}" for setting in settings])
        panels[-1, column].set_xlabel(name)
        panels[-1, column].margins(x=0.12)
    for panel in panels[1:, 0]:
        panel.set_ylim(-4, 104)
    panels[0, 0].set_ylim(bottom=-0.02)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
