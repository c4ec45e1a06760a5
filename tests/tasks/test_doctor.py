"""`task=doctor` tells what is there, what is missing and how to get it, before anything is computed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from program import Program

from difflens.main import conf_folder
from difflens.tasks.doctor import ask, missing, needs


def test_the_miniature_lacks_nothing(tmp_path: Path) -> None:
    program = Program(tmp_path)
    ended = program.done("task=doctor")
    found = program.json("doctor.json")
    assert all(need["found"] for need in found["needs"])
    assert "judge.scores.weights" in found["experiments"]["table_p2_gender"]
    assert min(found["forecast"]["seconds"].values()) > 0 and found["forecast"]["floor"] == "measured, on cpu"
    for told in (
        "GPU:",
        "forecast:",
        "memory:",
        "disk:",
        "DIFFLENS_OUTPUTS",
        "DIFFLENS_WEIGHTS",
        "HF_HUB_CACHE",
        "experiment=table_sd_race: lacks",
    ):
        assert told in ended.out


def test_what_real_weights_lack_is_listed_and_the_exit_code_says_so(tmp_path: Path) -> None:
    program = Program(tmp_path)
    ended = program("task=doctor", "experiment=table_p2_race", "metric=default")
    assert ended.code == 1 and "model.folder, judge.labels.clip.pretrained, judge.scores.weights" in ended.err
    needs = {need["key"]: need for need in program.json("doctor.json")["needs"]}
    lines = ended.out.splitlines()
    absent = next(number for number, line in enumerate(lines) if line.startswith("MISSING  model.folder: "))
    assert lines[absent + 1].strip() == needs["model.folder"]["remedy"], "on a line of its own, to be copied"
    assert "traceback" not in ended.err
    assert program.json("doctor.json")["forecast"]["floor"].startswith("counted: ")
    assert "task=convert" in needs["model.folder"]["remedy"]
    assert "FairFace" in needs["judge.scores.weights"]["remedy"] and needs["metric.extractor.folder"]["found"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which the doctor is asked within this process, with FairFace's weights in `mine`."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine" / "res34_fair_align_multi_7_20190809.pt"
    file.parent.mkdir()
    file.touch()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield tmp_path


@pytest.mark.parametrize(
    ("variable", "given", "found"),
    [
        (None, [], False),
        ("mine", [], True),
        (None, ["paths.weights=mine"], True),
        ("mine", ["paths.weights=elsewhere"], False),
    ],
)
@pytest.mark.usefixtures("here")
def test_every_experiment_is_looked_at_with_the_folders_of_the_command_line(
    variable: str | None, given: list[str], found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv("DIFFLENS_WEIGHTS", variable)
    lacking = missing(ask("table_p2_gender", given, model="mini_ddpm"))
    assert ("judge.scores.weights" not in lacking) is found


@pytest.mark.usefixtures("here")
def test_files_that_a_package_brings_are_found_there_and_the_package_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["judge=official_detected", "metric=default"]
    key = "judge.scores.faces.detector"
    (before,) = (need for need in needs(compose("config", overrides=given)) if need.key == key)
    if before.found is None:  # else the package itself is installed here
        assert "pip install face-recognition-models" in before.remedy
    models = here / "face_recognition_models" / "models"
    models.mkdir(parents=True)
    (models.parent / "__init__.py").write_text("raise ImportError('what is only looked into is not run')")
    (models / "mmod_human_face_detector.dat").touch()
    monkeypatch.syspath_prepend(here)
    (after,) = (need for need in needs(compose("config", overrides=given)) if need.key == key)
    assert after.found == models / "mmod_human_face_detector.dat"


@pytest.mark.usefixtures("here")
def test_the_shipped_judges_of_photographs_need_packages_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {need.key: need for need in needs(compose("config", overrides=["judge=photographs"]))}
    files = [key for key in asked if key.endswith((".file", ".landmarks"))]
    assert len(files) == 6 and all(asked[key].found for key in files)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    lacking = {need.remedy for need in needs(compose("config", overrides=["judge=photographs"])) if not need.found}
    assert lacking == {"pip install 'difflens[onnx]'", "pip install 'difflens[dlib]'"}


@pytest.mark.usefixtures("here")
def test_a_models_source_counts_for_the_experiments_on_that_model() -> None:
    given = ["model.source=package:miniature/weights/text_to_image/pipeline"]
    assert "model.source" not in missing(ask("table_sd_age", given, model="sd15"))
    assert "model.folder" in missing(ask("table_p2_age", given, model="sd15"))
    (source,) = (need for need in ask("table_sd_age", [], model="sd15") if need.key == "model.source")
    assert source.found is None and "set model.source to where it lies" in source.remedy
