"""Signs of failure from a run's own numbers: each shows where it holds, and nowhere else."""

import json
from pathlib import Path
from typing import Any

import pytest

from difflens.report.diagnosis import Sign, diagnose
from difflens.report.run_folder import read_run

SAE = {"fvu": 0.15, "dead_share": 0.01, "l0": 32.0, "width": 1024}
SEPARATION = {"latent": 7, "name": "male", "auc": 0.95, "error": 0.03, "other": "hair", "other_auc": 0.8, "images": 512}
SILENCING = {"images": 64, "top": 0.64, "random": 1.0, "difference": 0.36, "low": 0.24, "high": 0.48, "p": 1e-6}
PROBE = {"accuracy_per_step": [0.7, 1.0], "chance": 0.5}
POINTS = [
    {"strength": {"female": value, "male": value}, "success": {"female": share, "male": None}}
    for value, share in ((8.0, 0.99), (4.0, 0.94))
]
ROW = {
    **{"method": "difflens", "edited": 128, "reached": 0.98, "reached_low": 0.93, "reached_high": 0.99},
    **{"reached_unedited": 0.5, "clip_i_edited": 0.93, "clip_i_floor": 0.25},
}


def diagnosed(folder: Path, *, row: dict[str, Any] | None = None, **report: Any) -> dict[str, Sign]:
    """The signs of a healthy run with some of its numbers changed."""
    healthy = {"sae": SAE, "separation": SEPARATION, "silencing": SILENCING, "probe": PROBE, "dose": {"points": POINTS}}
    (folder / "report.json").write_text(json.dumps({**healthy, **report}))
    rows = [{"method": "original", "fd_hard": 0.3, "fd_low": 0.2}, {**ROW, **(row or {})}]
    (folder / "metrics.json").write_text(json.dumps({"rows": rows}))
    return {sign.key: sign for sign in diagnose(read_run(folder))}


def test_a_healthy_run_shows_none_and_tells_its_numbers(tmp_path: Path) -> None:
    signs = diagnosed(tmp_path)
    assert list(signs) == ["features", "attribution", "intervention"]
    assert {(sign.found, sign.advice) for sign in signs.values()} == {(False, "")}
    assert "15.0 % of the variance" in signs["features"].evidence and "0.950" in signs["features"].evidence
    assert "64.0 % of 64 images keep their class" in signs["attribution"].evidence
    # Weakest first, whatever order they were tried in; a class that nobody was pushed towards counts for nothing.
    assert "94.0 % show it at strength 4.00 and 99.0 % at 8.00" in signs["intervention"].evidence
    assert "91 % of the way" in signs["intervention"].evidence


@pytest.mark.parametrize(
    ("key", "changes", "words"),
    [
        ("features", {"sae": {**SAE, "fvu": 0.9}}, "Raise sae.training.tokens"),
        ("features", {"sae": {**SAE, "dead_share": 0.7}}, "Lower sae.expansion"),
        ("features", {"sae": {**SAE, "l0": 512.0}}, "Lower sae.k"),
        ("features", {"separation": {**SEPARATION, "auc": 0.55}}, "Choose another site"),
        ("features", {"separation": {**SEPARATION, "other_auc": 0.97}}, "attribution.specificity"),
        ("attribution", {"silencing": {**SILENCING, "p": 0.3}}, "Look at the probe first"),
        ("attribution", {"silencing": {**SILENCING, "difference": -0.4}}, "Look at the probe first"),
        ("intervention", {"row": {"reached_low": 0.45}}, "Raise mitigation.calibration.largest"),
        ("intervention", {"row": {"clip_i_edited": 0.4}}, "Edit less"),
    ],
)
def test_each_sign_shows_where_it_holds_and_says_what_to_change(
    tmp_path: Path, key: str, changes: dict[str, Any], words: str
) -> None:
    signs = diagnosed(tmp_path, **changes)
    assert [name for name, sign in signs.items() if sign.found] == [key]
    assert words in signs[key].advice


def test_what_was_not_measured_is_no_verdict_and_names_its_command(tmp_path: Path) -> None:
    unmeasured = {"unmeasured": "the 12 latents fire more than all others together; lower task.size."}
    signs = diagnosed(tmp_path, separation=None, silencing=unmeasured, row={"edited": 0})
    assert [sign.found for sign in signs.values()] == [None] * 3
    assert "`difflens task=report` does" in signs["features"].evidence
    assert "(the 12 latents fire more than all others together; lower task.size); `difflens task=ablation` does" in (
        signs["attribution"].evidence
    )
    assert "No image was pushed" in signs["intervention"].evidence


@pytest.mark.parametrize(("high", "found"), [(0.25, False), (0.35, True)])
def test_where_no_image_has_a_class_of_its_own_shares_tell(tmp_path: Path, high: float, found: bool) -> None:
    row = {"reached": None, "fd_hard": 0.1, "fd_high": high}
    assert diagnosed(tmp_path, row=row)["intervention"].found is found


def test_a_method_without_features_is_asked_for_its_effect_alone(tmp_path: Path) -> None:
    assert list(diagnosed(tmp_path, sae=None)) == ["intervention"]
