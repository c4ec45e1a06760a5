"""The whole program on a few images of the shipped miniature, as a user runs it."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from program import Program, undisturbed
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return undisturbed().copied(tmp_path_factory.mktemp("pipeline") / "study")


def test_a_run_leaves_what_the_architecture_promises() -> None:
    run = undisturbed()
    metrics = run.json("metrics.json")
    assert [row["method"] for row in metrics["rows"]] == ["original", "difflens"]
    for row in metrics["rows"]:
        assert row["n"] == 16
        assert sum(share["share"] for share in row["shares"].values()) == pytest.approx(1)
        assert all(share["low"] <= share["share"] <= share["high"] for share in row["shares"].values())
    others = {"age", "race", "glasses", "smile", "background", "shirt", "hair", "pose"}
    assert set(metrics["rows"][1]["leakage"]) == others
    outcomes = load_file(run.latest / "outcomes.safetensors")
    assert {f"other/{name}" for name in others} <= {*outcomes} and len(outcomes["image_ids"]) == 16
    assert run.json("status.json")["status"] == "done"
    stages = {"activations", "sae", "probe", "attribution", "calibrate", "steer", "metrics", "report"}
    assert stages <= set(run.json("manifest.json")["seconds"])
    assert (run.latest / "config.yaml").is_file()
    report = (run.latest / "report.html").read_text()
    assert 'src="http' not in report and "data:image/png" in report


def test_a_second_run_reuses_everything_and_says_the_same(program: Program) -> None:
    first = (program.latest / "metrics.json").read_bytes()
    program.done()
    assert all(entry["reused"] for entry in program.json("manifest.json")["artifacts"])
    assert (program.latest / "metrics.json").read_bytes() == first


def test_a_changed_target_reuses_what_it_can_holds_others_and_leaves_images_untouched(program: Program) -> None:
    images = undisturbed().json("metrics.json")["n"]
    assert len(undisturbed().json("images/edited.json")) == images, "a class for every image"
    changed = ("mitigation.target={female: 0.75, male: 0.25}", "mitigation.hold.attributes=[gender,age]")
    done = program.done(*changed, "mitigation.assignment=oracle", "mitigation.strength=2")
    assert "leakage into glasses, all / edited" in done.out
    made = program.json("manifest.json")["artifacts"]
    reused = {entry["kind"]: entry["reused"] for entry in made}
    assert reused["sae"] and reused["images"] and not reused["steered"]
    # That of gender, which is there, and that of age.
    assert sorted({entry["reused"] for entry in made if entry["kind"] == "attribution"}) == [False, True]
    folder = program.latest / "images"
    edited = {entry["id"] for entry in program.json("images/edited.json")}
    assert 0 < len(edited) < images == len(list((folder / "original").glob("*.png")))
    for image_id in set(range(images)) - edited:
        before, after = (Image.open(folder / name / f"{image_id}.png") for name in ("original", "difflens"))
        assert before.tobytes() == after.tobytes()


def measure_twice(file: str) -> None:
    """Let this process's calibration note a dose after one that shares one class's strength, and by itself."""
    import torch

    from difflens.stages import calibrate as stage

    meter, sample, sampled = stage.dose_meter, stage.sample, []

    def counted(trainer: Any, model: Any, plan: Any, *arguments: Any, **named: Any) -> None:
        sampled.append(plan.targets.tolist())
        sample(trainer, model, plan, *arguments, **named)

    def measured(*arguments: Any, folder: Path) -> Any:
        after_another, _ = meter(*arguments, folder=folder / "a")
        by_itself, _ = meter(*arguments, folder=folder / "b")
        after_another(torch.tensor([2.0, 2.0], dtype=torch.float64))
        found = [dose(torch.tensor([2.0, 4.0], dtype=torch.float64)) for dose in (after_another, by_itself)]
        doses = [{name: column.tolist() for name, column in vars(dose).items()} for dose in found]
        Path(file).write_text(json.dumps({"doses": doses, "sampled": sampled}))
        return meter(*arguments, folder=folder)

    stage.dose_meter, stage.sample = measured, counted  # type: ignore[assignment]


def test_a_dose_samples_only_images_whose_class_has_a_new_strength(tmp_path: Path) -> None:
    noted = tmp_path / "noted.json"
    program = undisturbed().copied(tmp_path / "study")
    program.done("task=calibrate", "mitigation.calibration.first=1.5", prepare=partial(measure_twice, str(noted)))
    found = json.loads(noted.read_text())
    first, rest, whole = found["sampled"][:3]
    assert first == whole and sorted(set(whole)) == [0, 1]
    assert rest == [target for target in whole if target == 1]
    assert found["doses"][0] == found["doses"][1]
