"""`task=doctor` tells what is there, what is missing and how to get it, before anything is computed."""

from pathlib import Path

from program import Program


def test_the_miniature_lacks_nothing(tmp_path: Path) -> None:
    program = Program(tmp_path)
    ended = program("task=doctor")
    assert ended.code == 0, ended.err
    found = program.json("doctor.json")
    assert all(need["found"] for need in found["needs"])
    assert "judge.scores.weights" in found["experiments"]["table_p2_gender"]
    for told in ("GPU:", "memory:", "disk:", "DIFFLENS_OUTPUTS", "experiment=table_sd_race: lacks"):
        assert told in ended.out


def test_what_real_weights_lack_is_listed_and_the_exit_code_says_so(tmp_path: Path) -> None:
    program = Program(tmp_path)
    ended = program("task=doctor", "model=p2_celebahq", "metric=default", "attribute=race")
    assert ended.code == 1 and "model.folder, judge.labels.clip.pretrained, judge.scores.weights" in ended.err
    needs = {need["key"]: need for need in program.json("doctor.json")["needs"]}
    assert "task=convert" in needs["model.folder"]["remedy"]
    assert "FairFace" in needs["judge.scores.weights"]["remedy"] and needs["metric.extractor.folder"]["found"]
