"""The whole program on a few images of the shipped miniature, as a user runs it."""

import json
from pathlib import Path

import pytest
from PIL import Image
from program import Ended, Program

TINY = [
    "model.steps=6",
    "model.micro_batch=16",
    "data.images=96",
    "data.buffer=8192",
    "sae.expansion=2",
    "sae.k=8",
    "sae.training.tokens=60000",
    "sae.training.batch=1024",
    "probe.iterations=5",
    "attribution.images_per_class=16",
    "metric.images=48",
    "metric.reference.images=128",
    "metric.kid_subset=32",
    "metric.cards=2",
    "mitigation.calibration.images=48",
    "mitigation.calibration.refinements=1",
    "mitigation.calibration.largest=2",
    "mitigation.hold.attributes=[gender,age]",
]


def difflens(folder: Path, *overrides: str) -> Ended:
    return Program(folder)(*TINY, *overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    done = difflens(folder)
    assert done.code == 0, done.err + done.out
    return folder


def latest(folder: Path) -> Path:
    return folder / "outputs" / "latest"


def test_a_run_leaves_what_the_architecture_promises(folder: Path) -> None:
    run = latest(folder)
    metrics = json.loads((run / "metrics.json").read_text())
    assert [row["method"] for row in metrics["rows"]] == ["original", "difflens"]
    for row in metrics["rows"]:
        assert row["n"] == 48
        assert sum(share["share"] for share in row["shares"].values()) == pytest.approx(1)
        assert all(share["low"] <= share["share"] <= share["high"] for share in row["shares"].values())
    assert set(metrics["rows"][1]["leakage"]) == {"age", "race", "glasses", "smile"}
    assert json.loads((run / "status.json").read_text())["status"] == "done"
    manifest = json.loads((run / "manifest.json").read_text())
    assert {"activations", "sae", "probe", "attribution", "calibrate", "steer", "metrics", "report"} <= set(
        manifest["seconds"]
    )
    assert (run / "config.yaml").is_file()
    report = (run / "report.html").read_text()
    assert 'src="http' not in report and "data:image/png" in report


def test_untouched_images_are_the_originals_and_edited_ones_are_listed(folder: Path) -> None:
    images = latest(folder) / "images"
    edited = {entry["id"] for entry in json.loads((images / "edited.json").read_text())}
    assert len(list((images / "original").glob("*.png"))) == 48
    for image_id in range(48):
        before, after = (Image.open(images / name / f"{image_id}.png") for name in ("original", "difflens"))
        if image_id not in edited:
            assert before.tobytes() == after.tobytes()


def test_a_second_run_reuses_everything_and_says_the_same(folder: Path) -> None:
    first = (latest(folder) / "metrics.json").read_bytes()
    done = difflens(folder)
    assert done.code == 0, done.err
    manifest = json.loads((latest(folder) / "manifest.json").read_text())
    assert all(entry["reused"] for entry in manifest["artifacts"])
    assert (latest(folder) / "metrics.json").read_bytes() == first


def test_a_changed_target_reuses_what_it_can(folder: Path) -> None:
    done = difflens(folder, "mitigation.target={female: 0.75, male: 0.25}", "mitigation.strength=0.5", "task=steer")
    assert done.code == 0, done.err
    assert "leakage into glasses, all / edited" in done.out
    reused = {e["kind"]: e["reused"] for e in json.loads((latest(folder) / "manifest.json").read_text())["artifacts"]}
    assert reused["sae"] and reused["attribution"] and reused["images"] and not reused["steered"]
