"""The experiments of the paper run on the miniature with only the model exchanged."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from program import Program, undisturbed

STUDIES = {
    "table_p2_gender": ["mitigation.times=0.5"],
    "table_sd_race": ["mitigation.strength=2"],
}
SWEEPS = {
    "fig_bias_level": ["mitigation.target={female: 0.1, male: 0.9},{female: 0.7, male: 0.3}", "mitigation.strength=2"],
    "fig_dose_response": ["mitigation.times=0,1"],
    "ablation_width": ["sae.expansion=2,4", "mitigation.strength=2", "sae.training.tokens=8000"],
}
PROMPTED = [
    "model=mini_sd",
    "model.micro_batch=8",
    "data.images=96",
    "attribution.images_per_class=4",
    "metric.images=4",
]
"""As tiny as the other studies: numbers of images are those of each of the four prompts."""


@pytest.mark.parametrize("name", STUDIES)
def test_a_table_runs_on_the_miniature_and_never_mixes_protocols(name: str, tmp_path: Path) -> None:
    if "_sd_" in name:
        program, model = Program(tmp_path), PROMPTED
    else:
        program, model = undisturbed().copied(tmp_path / "study"), ["model=mini_ddpm"]
    program.done(f"experiment={name}", *model, *STUDIES[name])
    metrics: dict[str, Any] = program.json("metrics.json")
    assert metrics["attribute"] == name.rsplit("_", 1)[-1]
    assert [row["method"] for row in metrics["rows"]] == ["original", "difflens"]
    page = (program.latest / "report.html").read_text()
    for row in metrics["published"]["rows"]:
        published = row.get("fd_official", row.get("fd_official_prompt_mean"))
        assert f"{published:.3f}" in page
    if name == "table_p2_gender":
        reused = program.reused
        assert reused["calibration"] and not reused["steered"]
    if metrics["published"]["rows"]:
        assert "Published and measured" in page
        assert "<small>differs</small>" in page
        numbers = page.split("difference: DiffLens")[1].split("</table>")[0]
        assert "<td>" in numbers and "<td>+" not in numbers and "<td>−" not in numbers
        if metrics["published"]["rows"][0].get("fid"):
            assert "No difference is formed where the two were not measured alike" in page
            assert re.search(r"<li>FID, original: model, n, steps, .*reference</li>", page)


@pytest.mark.parametrize("name", SWEEPS)
def test_a_figure_runs_on_the_miniature(name: str, tmp_path: Path) -> None:
    program = undisturbed().copied(tmp_path / "study")
    program.done(f"experiment={name}", "model=mini_ddpm", "task=steer", *SWEEPS[name])
    (sweep,) = (program.folder / "outputs" / "sweeps").iterdir()
    edited = [json.loads((sweep / job / "metrics.json").read_text())["rows"][1] for job in "01"]
    assert edited[0] != edited[1]
