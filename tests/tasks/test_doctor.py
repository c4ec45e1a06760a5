"""`task=doctor` tells what is there, what is missing and how to get it, before anything is computed."""

import os
from pathlib import Path

from program import Program


def test_the_miniature_lacks_nothing(tmp_path: Path) -> None:
    program = Program(tmp_path)
    ended = program("task=doctor")
    assert ended.code == 0, ended.err
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
    ended = program("task=doctor", "model=p2_celebahq", "metric=default", "attribute=race")
    assert ended.code == 1 and "model.folder, judge.labels.clip.pretrained, judge.scores.weights" in ended.err
    needs = {need["key"]: need for need in program.json("doctor.json")["needs"]}
    lines = ended.out.splitlines()
    missing = next(number for number, line in enumerate(lines) if line.startswith("MISSING  model.folder: "))
    assert lines[missing + 1].strip() == needs["model.folder"]["remedy"], "on a line of its own, to be copied"
    assert "traceback" not in ended.err
    assert program.json("doctor.json")["forecast"]["floor"].startswith("counted: ")
    assert "task=convert" in needs["model.folder"]["remedy"]
    assert "FairFace" in needs["judge.scores.weights"]["remedy"] and needs["metric.extractor.folder"]["found"]


def test_an_asked_for_experiment_that_cannot_run_ends_with_1(tmp_path: Path) -> None:
    program = Program(tmp_path)
    assert program("task=doctor", "experiment=table_sd_gender", "metric=default").code == 1
    remedies = {need["key"]: need["remedy"] for need in program.json("doctor.json")["needs"]}
    assert "set model.source to where it lies" in remedies["model.source"]


def weights_are_mine() -> None:
    os.environ["DIFFLENS_WEIGHTS"] = "mine"


def test_every_experiment_is_looked_at_with_the_folders_of_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "mine" / "res34_fair_align_multi_7_20190809.pt"
    file.parent.mkdir()
    file.touch()
    program = Program(tmp_path)
    for overrides, prepare in (([], weights_are_mine), (["paths.weights=mine"], None)):
        assert program("task=doctor", *overrides, prepare=prepare).code == 0
        assert "judge.scores.weights" not in program.json("doctor.json")["experiments"]["table_p2_gender"]
    assert program("task=doctor", "paths.weights=elsewhere", prepare=weights_are_mine).code == 0
    assert "judge.scores.weights" in program.json("doctor.json")["experiments"]["table_p2_gender"]


def test_a_models_source_counts_for_the_experiments_on_that_model(tmp_path: Path) -> None:
    program = Program(tmp_path)
    source = "model.source=package:miniature/weights/text_to_image/pipeline"
    assert program("task=doctor", "experiment=table_sd_gender", "metric=default", source).code == 1
    found = program.json("doctor.json")["experiments"]
    assert "model.source" not in found["table_sd_age"] and "model.folder" in found["table_p2_age"]
