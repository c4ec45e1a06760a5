"""A sweep's CSV, tables and plots say what its jobs measured, and what is missing."""

import csv
import io
import json
import subprocess
import sys
from itertools import groupby, product
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console
from sweep_folder import MEASURES, write_job

from difflens.report.figures import Point, draw_doses, draw_trade, front
from difflens.report.measures import FD, SOMETHING_ELSE, measures_of
from difflens.report.sweep import Job, as_csv, moves_originals, read_jobs, strength_of, tidy_rows
from difflens.report.sweep_page import cells_of, compare, costs, points_of, responses_of, trade_plots, write_sweep
from difflens.report.tables import Grid

FID = next(each for each in measures_of({"rows": [{"fid": 1.0}], "measures": MEASURES}) if each.key == "fid")


def change(job: Path, row: dict[str, Any], **changes: Any) -> None:
    """Give a job's metrics.json and its row of edited images other numbers."""
    metrics = {**json.loads((job / "metrics.json").read_text()), **changes}
    metrics["rows"][1] |= row
    (job / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def sweep(tmp_path: Path) -> tuple[Path, list[list[str]]]:
    """Two strengths by two seeds; one job failed, one was killed, and a third strength never began."""
    folder = tmp_path / "sweep"
    asked = [[f"mitigation.strength={s}", f"seed={seed}"] for s in (1, 2, 4) for seed in (0, 1)]
    write_job(folder / "0", asked[0], fd=0.10, fid=3.0)
    write_job(folder / "1", asked[1], fd=0.20, fid=3.2)
    write_job(folder / "2", asked[2], fd=0.01, fid=3.6)
    write_job(folder / "3", asked[3], fd=None, status="failed", error="sae: the loss is NaN")
    write_job(folder / "4", asked[4], fd=None)
    return folder, asked


def test_the_csv_has_a_row_per_job_and_method_with_every_measure(sweep):
    rows = list(csv.DictReader(io.StringIO(as_csv(tidy_rows(read_jobs(*sweep))))))
    assert [(row["job"], row["method"], row["status"]) for row in rows] == [
        ("0", "original", "done"), ("0", "difflens", "done"), ("1", "original", "done"), ("1", "difflens", "done"),
        ("2", "original", "done"), ("2", "difflens", "done"), ("3", "", "failed"), ("4", "", "running"),
        ("5", "", "not started"),
    ]  # fmt: skip
    assert rows[1]["mitigation.strength"] == "1" and float(rows[1]["leakage.race.flip_rate"]) == 0.05
    assert float(rows[1]["shares.female.low"]) == 0.4 and rows[6]["error"] == "sae: the loss is NaN"
    assert rows[0]["clip_i"] == "" and rows[6]["fd_hard"] == ""


def test_settings_are_averaged_over_seeds_and_missing_ones_are_shown(sweep):
    jobs = read_jobs(*sweep)
    cell = cells_of(jobs)["1", "difflens"]
    assert cell.shown(FD) == "0.150 ± 0.071" and cell.shown(FID) == "3.10 ± 0.14"
    grid = compare(jobs)
    assert grid.header[:3] == ["mitigation.strength", "method", "FD, hard ↓"]
    found = {(row[0], row[1]): (row[2], row[-1]) for row in grid.rows}
    assert found == {
        ("–", "original"): ("0.300", "1"),
        ("1", "DiffLens"): ("0.150 ± 0.071", "2"),
        ("2", "DiffLens"): ("0.010", "1 of 2"),
        ("4", "missing"): ("missing", "job 4: running; job 5: not started"),
    }
    assert [row[1] for row in grid.rows] == ["original", "DiffLens", "DiffLens", "missing"]


def test_the_originals_stand_once_for_each_target_and_each_set_of_images(tmp_path):
    targets = ("{female: 0.1, male: 0.9}", "{female: 0.5, male: 0.5}")
    asked = [(target, expansion, seed) for target in targets for expansion in (4, 8) for seed in (2002, 3003)]
    for number, (target, expansion, seed) in enumerate(asked):
        before = (0.9 if target == targets[0] else 0.3) + (0.02 if seed == 3003 else 0.0)
        overrides = [f"mitigation.target={target}", f"sae.expansion={expansion}", f"metric.base_seed={seed}"]
        write_job(tmp_path / str(number), overrides, fd=0.01, before=before)
    jobs = read_jobs(tmp_path)
    found = {row[0]: (row[1], row[3], row[-1]) for row in compare(jobs).rows if row[2] == "original"}
    assert found == {targets[0]: ("–", "0.910 ± 0.014", "2"), targets[1]: ("–", "0.310 ± 0.014", "2")}
    hollow = [round(point.x, 2) for point in points_of(jobs, FID) if point.original]
    assert sorted(hollow) == [0.31, 0.91]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_terminal_never_breaks_a_number(sweep, width):
    grid = compare(read_jobs(*sweep))
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(grid.terminal("a sweep"))
    lines = console.export_text().splitlines()
    assert lines[0] == "a sweep" and max(map(len, lines)) <= width
    for row in grid.rows:
        numbers = [cell for cell in row[2:] if "job" not in cell]
        assert all(
            [line for line in lines if line.split()[:1] == [row[0]] and f" {cell} " in f"{line} "] for cell in numbers
        )
    assert sum("worst ↓" in line for line in lines) == 1
    assert grid.caption in " ".join(" ".join(lines).split())


@pytest.mark.parametrize(
    ("key", "moves"),
    [
        ("mitigation.target", True), ("mitigation.target.female", True), ("mitigation", True), ("mitigation.times", False),
        ("metric.images", True), ("metric.base_seed", True), ("model", True), ("judge", True), ("prompt", True),
        ("sae.expansion", False), ("data.base_seed", False), ("data/site", False), ("seed", False), ("task", False),
    ],
)  # fmt: skip
def test_what_comes_after_sampling_moves_no_original(key, moves):
    assert moves_originals(key) is moves


@pytest.mark.parametrize("seed", ["seed", "data.base_seed", "metric.base_seed"])
def test_every_seed_is_pooled_and_the_caption_says_what_its_spread_covers(tmp_path, seed):
    for number, fd in enumerate((0.1, 0.2)):
        write_job(tmp_path / str(number), [f"{seed}={number}", "attribute=gender"], fd=fd)
    grid = compare(read_jobs(tmp_path))
    assert [row[1] for row in grid.rows if row[0] == "DiffLens"] == ["0.150 ± 0.071"]
    assert grid.caption.startswith(f"Mean ± standard deviation over {seed} (")
    assert ("does not cover" in grid.caption) is (seed != "metric.base_seed")
    assert f"<caption>{grid.caption}</caption>" in grid.html()
    assert f"% {grid.caption}\n" in grid.latex() and grid.markdown().endswith(f"\n{grid.caption}\n")


def test_of_prompts_the_mean_of_their_own_fd_is_compared_and_the_pooled_one_beside_it(tmp_path):
    write_job(tmp_path / "0", ["attribute=gender"], fd=0.01)
    change(tmp_path / "0", {"prompts": {"a nurse": {"fd_hard": 0.2}, "a doctor": {"fd_hard": 0.4}}})
    grid = compare(read_jobs(tmp_path))
    shown = dict(zip(grid.header, grid.rows[1], strict=True))
    assert shown["FD, hard, mean over prompts ↓"] == "0.300" and shown["FD, hard, prompts pooled ↓"] == "0.010"


def test_a_sweeps_tables_say_that_one_seed_has_no_spread_and_name_what_nobody_validated(tmp_path):
    write_job(tmp_path / "0", ["seed=1", "attribute=gender"], fd=0.01)
    caption = compare(read_jobs(tmp_path)).caption
    assert caption.startswith("One seed per setting, so no spread is known") and "validated" not in caption
    change(tmp_path / "0", {}, protocol={"not_validated": "race, hair"})
    jobs = read_jobs(tmp_path)
    assert compare(jobs).caption.endswith("Read by a judge that was not validated on it: race, hair.")
    assert {row["not_validated"] for row in tidy_rows(jobs)} == {"race, hair"}


@pytest.mark.parametrize(
    ("written", "number"), [("1.5", 1.5), ("{female: 1, male: 2}", 1.5), ("{a:2}", 2), ("auto", None)]
)
def test_a_strength_is_read_as_the_command_line_writes_it(written, number):
    assert strength_of(written) == number


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("mitigation.times", ["0", "0.5", "2"]),
        ("mitigation.strength", ["{female: 0, male: 0}", "{female: 0.5, male: 0.5}", "{female: 3, male: 1}"]),
    ],
)
def test_a_swept_strength_is_one_line_and_a_response(tmp_path, key, values):
    """Two widths by three strengths by two seeds, the strongest first: a line each, weakest to strongest."""
    for number, (width, index, seed) in enumerate(product((4, 8), (2, 0, 1), (0, 1))):
        asked = [f"{key}={values[index]}", f"sae.expansion={width}", f"seed={seed}"]
        write_job(tmp_path / str(number), asked, fd=0.3 - 0.1 * index + 0.02 * seed, female=0.3 + 0.1 * index)
    jobs = read_jobs(tmp_path)
    lines = groupby((p for p in points_of(jobs, FID) if not p.original), key=lambda point: point.line)
    assert [[round(p.x, 2) for p in line] for _, line in lines] == [[0.31, 0.21, 0.11]] * 2
    responses = responses_of(jobs)
    assert [title for title, _ in responses] == [f"gender, DiffLens, sae.expansion={w}" for w in (4, 8)]
    data = responses[0][1]
    assert data["axis"] == key and [row["dose"] for row in data["rows"]] == [0, 0.5, 2]
    assert [row["shares"]["female"]["share"] for row in data["rows"]] == pytest.approx([0.3, 0.4, 0.5])
    figure = Figure()
    draw_doses(figure, data)
    shares, fd, fid, clip, leakage, empty = figure.axes
    assert list(fid.lines[0].get_ydata()) == [3.0] * 3 and not empty.axison
    assert list(shares.lines[0].get_ydata()) == pytest.approx([30, 40, 50])
    assert list(fd.lines[0].get_xdata()) == [0, 0.5, 2] and list(fd.lines[0].get_ydata()) == pytest.approx(
        [0.31, 0.21, 0.11]
    )
    assert list(clip.lines[0].get_ydata()) == pytest.approx([0.97] * 3)
    assert {line.get_label(): next(iter(line.get_ydata())) for line in leakage.lines} == {"age": 2.0, "race": 5.0}


def test_a_calibrated_strength_is_no_point_of_the_line_and_one_strength_no_response(tmp_path):
    for number, strength in enumerate(("auto", "1", "2")):
        write_job(tmp_path / str(number), [f"mitigation.strength={strength}"], fd=0.1 * number)
    jobs = read_jobs(tmp_path)
    lines = {name: len(list(line)) for name, line in groupby(points_of(jobs, FID), key=lambda point: point.line)}
    assert lines == {("auto", "difflens"): 1, ("difflens",): 2, ("–", "original"): 1}
    assert [len(data["rows"]) for _, data in responses_of(jobs)] == [2]
    assert responses_of(jobs[:2]) == []


def test_a_table_comes_in_every_format_with_its_signs_escaped():
    grid = Grid(["sae_k", "FD ↓"], [["a|b & 5 %", "0.1 ± 0.2"], ["<x>", "missing"]], numbers=1)
    assert grid.markdown().splitlines()[2] == "| a\\|b & 5 % | 0.1 ± 0.2 |"
    latex = grid.latex()
    assert "\\begin{tabular}{lr}" in latex and "sae\\_k & FD $\\downarrow$ \\\\" in latex
    assert "a|b \\& 5 \\% & 0.1 $\\pm$ 0.2 \\\\" in latex
    assert '<td>&lt;x&gt;</td><td class="number absent">missing</td>' in grid.html()


def test_the_front_holds_what_no_other_point_beats(sweep):
    def point(x: float, y: float) -> Point:
        return Point((), "gender", "gender", False, 0.0, x, y)

    points = [point(0.1, 3.0), point(0.2, 2.0), point(0.2, 2.5), point(0.3, 2.0)]
    assert front(points, better=-1) == points[:2]
    assert front(points, better=1) == points[:1]
    line = [p for p in points_of(read_jobs(*sweep), FID) if not p.original]
    assert [(p.strength, round(p.x, 3), round(p.y, 2)) for p in line] == [(1, 0.15, 3.1), (2, 0.01, 3.6)]


def dosed(folder: Path, methods: dict[str, float], attributes: tuple[str, ...]) -> list[Job]:
    """Jobs of `difflens experiment=rivals strength=half,calibrated,double`: method → what of the others one dose changes."""
    doses = {"half": 0.5, "calibrated": 1.0, "double": 2.0}
    for number, (attribute, method, word) in enumerate(product(attributes, methods, doses)):
        asked = [f"attribute={attribute}", f"mitigation={method}", f"strength={word}"]
        write_job(folder / str(number), asked, fd=0.3 - 0.1 * doses[word])
        change(
            folder / str(number),
            {"method": method, "nothing_else": 1 - methods[method] * doses[word]},
            attribute=attribute,
        )
    return read_jobs(folder)


def test_every_method_is_a_line_of_fd_and_leakage_over_the_dose(tmp_path: Path) -> None:
    jobs = dosed(tmp_path, {"difflens": 0.1, "h_direction": 0.4}, ("gender",))
    points = points_of(jobs, SOMETHING_ELSE)
    lines = {line: [*group] for line, group in groupby(points, key=lambda point: point.line)}
    assert {line[0].name: [round(100 * p.y) for p in line] for line in lines.values()} == {
        "DiffLens": [5, 10, 20],
        "h_direction": [20, 40, 80],
    }
    assert all([round(p.x, 2) for p in line] == [0.25, 0.2, 0.1] for line in lines.values())
    figure = Figure()
    draw_trade(figure, points, measure=SOMETHING_ELSE)
    drawn = [line.get_ydata() for line in figure.axes[0].lines if len(line.get_ydata())]
    assert [list(map(round, ys)) for ys in drawn] == [[5, 10, 20], [20, 40, 80]]
    assert figure.axes[0].get_ylabel() == "something else changed ↓ (%)"


def test_several_methods_have_a_plot_for_each_attribute_and_one_has_a_single_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("difflens.report.sweep_page.inline_svg", lambda *_, name, **about: name)
    both = dosed(tmp_path / "both", {"difflens": 0.1, "h_direction": 0.4}, ("gender", "age"))
    keys = [plot.key for plot in trade_plots(both) if "thing_else" in plot.key]
    assert keys == ["pareto_something_else_gender", "pareto_something_else_age"], "and none of nothing else"
    alone = dosed(tmp_path / "alone", {"difflens": 0.1}, ("gender", "age"))
    assert [plot.key for plot in trade_plots(alone) if "something_else" in plot.key] == ["pareto_something_else"]
    assert {point.name for point in points_of(alone, SOMETHING_ELSE)} == {"gender", "age"}


AGGREGATE = """
import sys
from difflens.main import main
sys.argv = ["difflens", "task=aggregate", "sweep=" + sys.argv[1]]
main()
sys.exit("torch" in sys.modules)
"""


def test_the_task_reads_what_hydra_wrote_and_imports_no_torch(sweep, tmp_path):
    folder, _ = sweep
    command = "overrides: {task: ['mitigation.strength=1,2,4', 'seed=range(2)']}\n  sweeper: {params: null}"
    (folder / "multirun.yaml").write_text(f"hydra:\n  {command}\n")
    done = subprocess.run([sys.executable, "-c", AGGREGATE, str(folder)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "job 5: not started" in " ".join(done.stdout.split())
    names = {*(f"table.{kind}" for kind in ("md", "tex", "html")), "results.csv", "report.html", "response_0.svg"}
    assert names | {"pareto_fid.svg", "pareto_worst_leakage.svg"} <= {path.name for path in folder.iterdir()}
    page = (folder / "report.html").read_text()
    assert 'href="0/report.html"' in page and 'href="3/report.html"' not in page and "the loss is NaN" in page
    assert page.count("<svg") == 5 and 'src="http' not in page
    assert page.count(compare(read_jobs(*sweep)).caption) == 1


def test_a_folder_without_jobs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no sweep folder"):
        read_jobs(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no job"):
        read_jobs(tmp_path)


def test_what_methods_cost_stands_beside_them_where_the_sweep_varies_them(tmp_path: Path) -> None:
    assert costs([]) is None
    folder = tmp_path / "sweep"
    for number, (method, reused) in enumerate((("difflens", False), ("prompt", True))):
        job = folder / str(number)
        write_job(job, [f"mitigation={method}"], fd=0.1)
        change(job, {"compute": 1.5})
        artifacts = [{"kind": "fit", "reused": reused}, {"kind": "steered", "reused": False}]
        (job / "manifest.json").write_text(json.dumps({"seconds": {"fit": 3.4, "steer": 60.2}, "artifacts": artifacts}))
    found = costs(read_jobs(folder))
    assert found is not None
    assert [list(row[2:]) for row in found.rows] == [["1.50", "3", "–", "60"], ["1.50", "reused", "–", "60"]]
    write_sweep(folder, read_jobs(folder))
    assert (folder / "costs.tex").is_file() and "What the methods cost" in (folder / "report.html").read_text()
