"""A measure that metrics.json lists is shown everywhere, and so is every method, without any code that names it."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sweep_folder import write_job

from difflens.report import summary_markdown, write_report
from difflens.report.figures import draw_shares
from difflens.report.measures import measures_of
from difflens.report.sweep import read_jobs
from difflens.report.sweep_page import write_sweep

SHARPNESS = {"key": "sharpness", "label": "sharpness", "unit": "dB", "digits": 1, "better": 1, "meaning": "of edges"}
FD = {"key": "fd_hard", "label": "FD hard", "unit": "", "digits": 3, "better": -1, "meaning": "0 is fair"}


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two strengths, whose metrics.json lists a measure that nothing in the package names."""
    for number in (0, 1):
        folder = tmp_path / "sweep" / str(number)
        write_job(folder, [f"mitigation.strength={number}"], fd=0.1 + number)
        rows = json.loads((folder / "metrics.json").read_text())["rows"]
        rows[1]["sharpness"] = 7.25 + number
        change(folder / "metrics.json", rows=rows, measures=[FD, SHARPNESS])
    return tmp_path / "sweep"


def test_a_listed_measure_is_in_summary_page_sweep_csv_plots_and_dashboard(sweep: Path) -> None:
    metrics = json.loads((sweep / "0" / "metrics.json").read_text())
    assert "| sharpness ↑ | – | 7.2 dB |" in summary_markdown(metrics)
    page = write_report(sweep / "0").read_text()
    assert "sharpness ↑<small>of edges</small>" in page and "<td>7.2 dB</td>" in page
    jobs = read_jobs(sweep)
    page = write_sweep(sweep, jobs).read_text()
    assert "FD and sharpness" in page and "sharpness ↑ (dB)" in page and '<td class="number">8.2 dB</td>' in page
    assert (sweep / "pareto_sharpness.svg").is_file() and "sharpness $\\uparrow$" in (sweep / "table.tex").read_text()
    values = [row["sharpness"] for row in csv.DictReader((sweep / "results.csv").open())]
    assert values == ["", "7.25", "", "8.25"]

    pytest.importorskip("wandb_workspaces", reason="extra dashboard")
    from difflens.tasks.dashboard import describe_workspace

    found = describe_workspace("s", [job.metrics for job in jobs], entity="e", project="p")
    text = found._to_model().model_dump_json(by_alias=True)
    assert "sharpness by method" in text and "summary:difflens/sharpness" in text


def test_what_a_run_does_not_list_is_not_shown_and_without_a_list_every_number_is_by_its_own_name() -> None:
    row = {"method": "original", "fd_hard": 0.1, "fid": 3.0, "sharpness": 1.0}

    def shown(**listed: Any) -> list[tuple[str, str]]:
        return [(measure.key, measure.heading) for measure in measures_of({"rows": [row], **listed})]

    assert shown(measures=[FD, SHARPNESS]) == [("fd_hard", "FD hard ↓"), ("sharpness", "sharpness ↑")]
    assert shown() == [(key, key) for key in ("fd_hard", "fid", "sharpness")]


def test_units_scale_and_spreads_stand_behind() -> None:
    share = {**SHARPNESS, "key": "kept", "label": "kept", "unit": "%"}
    metrics = {"rows": [{"method": "a", "kept": 0.255, "kept_sd": 0.01, "kept_max": 1.0}], "measures": [share]}
    (measure,) = measures_of(metrics)
    assert measure.cell(metrics["rows"][0]) == "25.5 ± 1.0 %"


def ten_methods(folder: Path) -> Path:
    write_job(folder, [], fd=0.1)
    original, edited = json.loads((folder / "metrics.json").read_text())["rows"]
    names = ["difflens", *(f"rival{i}" for i in range(1, 10))]
    rows = [original, *({**edited, "method": name, "fd_hard": i / 1000} for i, name in enumerate(names, 1))]
    change(folder / "metrics.json", rows=rows)
    for method in ("original", "difflens", "rival3"):
        (folder / "images" / method).mkdir(parents=True)
        for image_id in range(4):
            pixels = np.full((8, 8, 3), 10 * image_id, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / method / f"{image_id}.png")
    (folder / "images" / "edited.json").write_text(json.dumps([{"id": 1, "from": "male", "to": "female"}]))
    return folder


def test_ten_methods_are_all_on_the_page(tmp_path: Path) -> None:
    page = write_report(ten_methods(tmp_path / "run")).read_text()
    summary = page[page.index('id="summary"') :]
    assert all(f'<th scope="col">rival{i}</th>' in summary for i in range(1, 10)) and "<td>0.010</td>" in summary
    grid, leakage = page[page.index('id="grid"') : page.index('id="shares"')], page[page.index('id="leakage"') :]
    assert grid.count("<figure") == 8 and "1 of 1 changed images" in grid and "<h3>rival3</h3>" in grid
    assert grid.count("untouched</figcaption>") == 3, "of a further method nobody says which images it left alone"
    assert all(f"<h3>rival{i}</h3>" in leakage for i in range(1, 10))
    assert "by DiffLens, the first of 10 methods" in page


def test_ten_methods_differ_and_stay_apart_in_the_figure_of_shares() -> None:
    shares = {name: {"share": 0.5, "low": 0.4, "high": 0.6} for name in ("female", "male")}
    rows = [{"method": name, "shares": shares} for name in ("original", *(f"rival{i}" for i in range(10)))]
    figure = Figure()
    draw_shares(figure, rows, classes=["female", "male"], target={})
    drawn = [container.lines[0] for container in figure.axes[0].containers]
    assert len({(line.get_color(), line.get_marker(), line.get_markerfacecolor()) for line in drawn}) == 11
    heights = sorted(float(height) for line in drawn for height in line.get_ydata())
    assert np.diff(heights).min() > 0.05 and max(heights) < 1.45
