"""`task=transfer` on the tiny study: the fit stays, only the sampling changes, and calibrating anew is set beside it."""

import csv
from pathlib import Path

import pytest
from program import TINY, Program, undisturbed


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return undisturbed().copied(tmp_path_factory.mktemp("transfer") / "study")


def reused(program: Program) -> dict[str, set[bool]]:
    found: dict[str, set[bool]] = {}
    for entry in program.json("manifest.json")["artifacts"]:
        found.setdefault(entry["kind"], set()).add(entry["reused"])
    return found


def test_one_calibration_is_measured_elsewhere_with_what_calibrating_there_gives(program: Program) -> None:
    ended = program.done("task=transfer", "task.vary.steps=[3]", "task.vary.eta=[1.0]")
    assert "guidance: mini_ddpm has no such setting; left out" in " ".join(ended.out.split())
    # Nothing is learnt anew; images, calibration and measures of the other settings are made.
    made = reused(program)
    assert all(made[kind] == {True} for kind in ("activations", "sae", "probe", "attribution", "statistics", "fit"))
    assert made["images"] == made["calibration"] == made["metrics"] == {True, False}
    data, study = program.json("transfer.json"), undisturbed().json("metrics.json")["rows"]
    assert data["rows"]["transferred"]["fd"] == study[1]["fd"] == program.json("metrics.json")["rows"][1]["fd"]
    assert [(each["axis"], each["value"], each["studied"]) for each in data["settings"]] == [
        ("steps", 3, 4),
        ("eta", 1.0, 0.0),
    ]
    for setting in data["settings"]:
        rows = setting["rows"]
        assert rows["original"]["fid"] != study[0]["fid"] and set(setting["strength"]) == {"female", "male"}
        assert all(rows[edit]["edited"] == TINY["metric.images"] for edit in ("transferred", "recalibrated"))
        assert rows["transferred"]["fd_low"] <= rows["transferred"]["fd_hard"] <= rows["transferred"]["fd_high"]
        if setting["strength"] == data["strength"]:
            assert rows["recalibrated"] == rows["transferred"]
    with (program.latest / "transfer.csv").open() as file:
        lines = [*csv.DictReader(file)]
    assert len(lines) == 2 + 3 * 2
    assert float(lines[3]["fd_hard"]) == data["settings"][0]["rows"]["transferred"]["fd_hard"]
    assert (program.latest / "transfer.svg").is_file()
    page = (program.latest / "report.html").read_text()
    assert 'id="transfer"' in page and "Calibrated there" in page
    assert 'id="transfer"' not in (undisturbed().latest / "report.html").read_text()


def test_a_strength_that_was_given_is_not_calibrated_anywhere(program: Program) -> None:
    program.done("task=transfer", "task.vary.steps=[3]", "task.vary.eta=[]", "mitigation.strength=1")
    (setting,) = program.json("transfer.json")["settings"]
    assert setting["rows"]["recalibrated"] is None and setting["strength"] is None
    assert "calibration" not in reused(program)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (
            ["task.vary.steps=[1]", "task.vary.eta=[]"],
            "task.vary.steps=1: none of the 1 steps lies in mitigation.window.",
        ),
        (["task.vary.steps=[4]", "task.vary.eta=[]"], "task.vary names no setting that this model has"),
    ],
)
def test_what_cannot_be_met_is_refused_before_anything_is_made(
    program: Program, overrides: list[str], complaint: str, tmp_path: Path
) -> None:
    assert complaint in program.refused("task=transfer", *overrides)
    assert not program.json("manifest.json")["artifacts"]


def test_prompts_never_used_before_are_a_setting_and_so_is_guidance(tmp_path: Path) -> None:
    program = Program(tmp_path / "study")
    few = ['prompt.studied=["a face of a {} doctor"]', 'prompt.unseen=["a face of a {} baker"]', "data.images=16"]
    few += ["mitigation=prompt", "metric.images=8", "model.steps=2"]
    program.done(
        "model=mini_sd", "task=transfer", "task.vary.steps=[]", "task.vary.eta=[]", "task.vary.guidance=[1,6]", *few
    )
    weak, strong, unseen = program.json("transfer.json")["settings"]
    assert (weak["value"], strong["value"], weak["studied"]) == (1, 6, 3.0)
    assert (unseen["axis"], unseen["value"], unseen["studied"]) == ("prompts", "unseen", "studied")
    assert list(unseen["rows"]["transferred"]["prompts"]) == ["a face of a baker"]
    assert list(weak["rows"]["transferred"]["prompts"]) == ["a face of a doctor"]
    # An image may only depend on guidance where its branch without a prompt is computed.
    assert weak["rows"]["original"]["clip_t"] != strong["rows"]["original"]["clip_t"]
    # Naming the class has no dial: nothing is calibrated.
    assert weak["rows"]["recalibrated"] is None


def test_an_update_that_another_scheduler_cannot_make_is_refused(tmp_path: Path) -> None:
    ended = Program(tmp_path / "study")(
        *("model=mini_sd", "task=transfer", "task.vary.steps=[]", "task.vary.eta=[]", "task.vary.guidance=[]"),
        "task.vary.scheduler=[euler]",
    )
    assert ended.code == 2
    assert "task.vary.scheduler=euler: the asymmetric update needs the DDIM scheduler" in ended.complaint
