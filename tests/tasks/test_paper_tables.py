"""The experiments of the paper run on the miniature with only the model exchanged."""

from pathlib import Path

from program import Program, undisturbed


def test_a_table_runs_on_the_miniature_and_never_mixes_protocols(tmp_path: Path) -> None:
    program: Program = undisturbed().copied(tmp_path / "study")
    ended = program("experiment=table_p2_gender", "model=mini_ddpm", "mitigation.times=0.5")
    assert ended.code == 0, ended.err
    assert program.json("metrics.json")["published"]["rows"][1]["fd_official"] == 0.002
    page = (program.latest / "report.html").read_text()
    assert "Published and measured" in page and "33.380" in page
    assert "The two protocols differ in model, judge, judge protocol, n, steps, assignment" in page
    reused = {entry["kind"]: entry["reused"] for entry in program.json("manifest.json")["artifacts"]}
    assert reused["calibration"] and not reused["steered"]
