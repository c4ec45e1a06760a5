"""A sweep's CSV, tables and plots say what its jobs measured, and what is missing."""

import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest
from sweep_folder import write_job

from difflens.report.comparison import FD, FID, cells_of, compare
from difflens.report.formats import Grid
from difflens.report.sweep import as_csv, read_jobs, tidy_rows
from difflens.report.sweep_figures import Point, front, points_of


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
    assert grid.header[:3] == ["mitigation.strength", "method", "FD hard ↓"]
    found = {(row[0], row[1]): (row[2], row[-1]) for row in grid.rows}
    assert found == {
        ("–", "original"): ("0.300 ± 0.000", "2"),
        ("1", "DiffLens"): ("0.150 ± 0.071", "2"),
        ("2", "DiffLens"): ("0.010", "1 of 2"),
        ("4", "missing"): ("missing", "job 4: running; job 5: not started"),
    }
    assert [row[1] for row in grid.rows] == ["original", "DiffLens", "DiffLens", "missing"]


def test_a_table_comes_in_every_format_with_its_signs_escaped():
    grid = Grid(["sae_k", "FD ↓"], [["a|b & 5 %", "0.1 ± 0.2"], ["<x>", "missing"]], numbers=1)
    assert grid.markdown().splitlines()[2] == "| a\\|b & 5 % | 0.1 ± 0.2 |"
    latex = grid.latex()
    assert "\\begin{tabular}{lr}" in latex and "sae\\_k & FD $\\downarrow$ \\\\" in latex
    assert "a|b \\& 5 \\% & 0.1 $\\pm$ 0.2 \\\\" in latex
    assert '<td>&lt;x&gt;</td><td class="number absent">missing</td>' in grid.html()


def test_the_front_holds_what_no_other_point_beats(sweep):
    def point(x: float, y: float) -> Point:
        return Point((), "gender", False, 0.0, x, y)

    points = [point(0.1, 3.0), point(0.2, 2.0), point(0.2, 2.5), point(0.3, 2.0)]
    assert front(points, better=-1) == points[:2]
    assert front(points, better=1) == points[:1]
    line = [p for p in points_of(read_jobs(*sweep), FID) if not p.original]
    assert [(p.strength, round(p.x, 3), round(p.y, 2)) for p in line] == [(1, 0.15, 3.1), (2, 0.01, 3.6)]
    assert line[0].series == line[1].series


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
    names = {
        "results.csv",
        "table.md",
        "table.tex",
        "table.html",
        "report.html",
        "pareto_fid.svg",
        "pareto_leakage.svg",
    }
    assert names <= {path.name for path in folder.iterdir()}
    page = (folder / "report.html").read_text()
    assert 'href="0/report.html"' in page and 'href="3/report.html"' not in page and "the loss is NaN" in page
    assert page.count("<svg") == 4 and 'src="http' not in page


def test_a_folder_without_jobs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no sweep folder"):
        read_jobs(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no job"):
        read_jobs(tmp_path)
