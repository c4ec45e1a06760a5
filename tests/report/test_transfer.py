"""One calibration at other settings, as the report tells it: the order, the study among the values, a line per edit."""

from typing import Any

from matplotlib.figure import Figure

from difflens.report.transfer import axes_of, draw_transfer, sentence, setting_table, tidy_settings


def row(fd: float, reached: float | None = None) -> dict[str, Any]:
    shares = {"reached_unedited": 0.5, "nothing_else": 0.9}
    ends = {} if reached is None else {"reached_low": reached - 0.1, "reached_high": reached + 0.05, **shares}
    return {"n": 64, "fd_hard": fd, "fd_low": fd / 2, "fd_high": fd + 0.1, "reached": reached, **ends}


def setting(axis: str, value: Any, studied: Any, recalibrated: dict[str, Any] | None = None) -> dict[str, Any]:
    rows = {"original": row(0.3), "transferred": row(0.2, 0.7), "recalibrated": recalibrated}
    strength = {"female": 2.0} if recalibrated else None
    return {"axis": axis, "value": value, "studied": studied, "rows": rows, "strength": strength}


DATA = {
    "attribute": "gender",
    "images": 64,
    "strength": {"female": 1.0},
    "rows": {"original": row(0.28), "transferred": row(0.01, 0.98)},
    "settings": [
        setting("steps", 50, 20, row(0.02, 0.95)),
        setting("steps", 10, 20, row(0.05, 0.9)),
        setting("scheduler", "euler", "ddim"),
    ],
}


def test_the_study_stands_among_the_values_in_their_order() -> None:
    axes = axes_of(DATA)
    assert [each["value"] for each in axes["steps"]] == [10, 20, 50]
    assert [each["value"] for each in axes["scheduler"]] == ["ddim", "euler"]
    assert axes["steps"][1]["rows"]["recalibrated"] == DATA["rows"]["transferred"] and axes["steps"][1]["is_study"]


def test_every_setting_has_a_line_for_each_edit_with_its_strength_and_ends() -> None:
    lines = tidy_settings(DATA)
    assert [(line["axis"], line["value"], line["edit"]) for line in lines] == [
        ("", "", "original"),
        ("", "", "transferred"),
        *[("steps", steps, edit) for steps in (50, 10) for edit in ("original", "transferred", "recalibrated")],
        ("scheduler", "euler", "original"),
        ("scheduler", "euler", "transferred"),
    ]
    moved, anew = lines[3], lines[4]
    assert moved["strength female"] == 1.0 and anew["strength female"] == 2.0 and "strength female" not in lines[2]
    assert moved["fd_hard"] == 0.2 and moved["fd_high"] > 0.2 and moved["reached_low"] < moved["reached"] == 0.7


def test_a_table_and_a_sentence_tell_what_calibrating_there_gives() -> None:
    first, study, *_ = setting_table(DATA).rows
    assert first[:2] == ["steps", "10"] and first[3].startswith("0.200 (0.100–0.300)") and first[4].startswith("0.050")
    assert study[1] == "20 (study)" and study[4] == "–"
    words = "(without an edit → with it → calibrated there); class reached 70.0 % → 90.0 %"
    assert sentence(DATA["settings"][1]) == f"steps=10: FD hard 0.300 → 0.200 → 0.050 {words}"
    assert "calibrated there" not in sentence(DATA["settings"][2])


def test_the_plot_has_a_column_for_every_axis_and_no_curve_of_what_was_not_made() -> None:
    figure = Figure()
    draw_transfer(figure, DATA)
    panels = figure.axes
    assert len(panels) == 6
    steps, scheduler = panels[0], panels[1]
    assert [label.get_text() for label in panels[4].get_xticklabels()] == ["10", "20", "50"]
    assert panels[4].get_xlabel() == "steps" and panels[5].get_xlabel() == "scheduler"
    assert len(steps.containers) == len(scheduler.containers) == 3
    # How many show their class without the edit is known of the edit's own images; that nothing changes needs no curve.
    plain = panels[2].containers[0].lines[0].get_ydata()
    assert len(panels[2].containers) == 3 and list(plain) == [50.0] * 3
    assert len(panels[4].containers) == 2
