"""`task=evaluate` on folders as people leave them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from judges.test_onnx import write
from PIL import Image
from program import Program

from difflens.miniature.faces import render
from difflens.miniature.population import Population


def faces(folder: Path, *, seed: int, count: int = 24) -> Path:
    folder.mkdir(parents=True)
    pixels = (render(Population().sample(count, seed=seed)) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    return folder


def disorder(folder: Path) -> None:
    """Leave files of every odd kind."""
    for name, mode in (("00", "L"), ("01", "RGBA"), ("02", "P")):
        Image.open(folder / f"{name}.png").convert(mode).save(folder / f"{name}.png")
    grey = np.asarray(Image.open(folder / "03.png").convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(folder / "03.png")
    Image.open(folder / "04.png").convert("CMYK").save(folder / "04.tif")
    (folder / "04.png").unlink()
    turned = Image.open(folder / "05.png")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "05.png", exif=exif)
    (folder / "zero.png").touch()
    (folder / "broken.png").write_bytes((folder / "06.png").read_bytes()[:100])
    (folder / "notes.txt").write_text("no image")
    Image.open(folder / "07.png").save(folder / "07.jpg")


CONVERTED = {
    "grayscale": 2,
    "transparency": 1,
    "palette": 1,
    "16 bits": 1,
    "CMYK": 1,
    "rotated by EXIF": 1,
}
REFUSED = {"empty": ["zero.png"], "corrupt": ["broken.png"], "not an image": ["notes.txt"]}


def test_every_odd_file_is_told_and_what_is_measured_is_exact(tmp_path: Path) -> None:
    program = Program(tmp_path)
    faces(tmp_path / "reference", seed=2)
    disorder(faces(tmp_path / "images", seed=2))
    given = ("task=evaluate", "images=images", "reference=reference", "attribute=age")
    program.done(*given)
    metrics = program.json("metrics.json")
    found = metrics["folders"]["images"]
    assert {why: kind["count"] for why, kind in found["converted"].items()} == CONVERTED
    refused = {why: kind["names"] for why, kind in found["refused"].items()}
    assert refused == REFUSED | {"same name as another image": ["07.png"]}
    assert metrics["n"] == 24
    original, images = metrics["rows"]
    assert (original["fid"], images["pairs"], images["edited"]) == (None, 24, None)
    assert images["clip_i"] > 0.9 and images["leakage"]["gender"]["flip_rate"] < 0.3
    page = (program.latest / "report.html").read_text()
    assert "notes.txt" in page and "2 grayscale" in page and "Sparse" not in page and "task=steer" not in page
    again = program(*given)
    assert again.code == 0 and program.json("metrics.json") == metrics
    assert all(entry["reused"] for entry in program.json("manifest.json")["artifacts"])

    (tmp_path / "images" / "23.png").rename(tmp_path / "images" / "extra.png")
    lonely = program(*given)
    assert lonely.code == 2
    for told in ("only in 'reference' (23)", "only in 'images' (extra)", "pairs=intersect", "originals=null"):
        assert told in lonely.complaint
    crossed = program.done(*given, "pairs=intersect")
    metrics = program.json("metrics.json")
    assert metrics["rows"][1]["pairs"] == 23 and metrics["n"] == 24
    assert metrics["unpaired"] == {"originals": ["23"], "images": ["extra"]}

    assert "warning" not in crossed.out
    for path in (tmp_path / "images").iterdir():
        if path.suffix == ".png" and path.stem.isdecimal():
            Image.open(path).convert("RGB").resize((48, 40)).save(path)
    alone = program(*given, "originals=null")
    assert alone.out.count("faces of 32 × 32 pixels, and these images have 48 × 40") == 1
    assert alone.code == 0, alone.err
    (row,) = program.json("metrics.json")["rows"]
    assert row["clip_i"] is None and row["edited"] is None and row["fid"] > 0
    assert json.loads((program.latest / "status.json").read_text())["status"] == "done"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("images=nowhere", "reference=nowhere"), "no folder of images at 'nowhere'"),
        (("images=nowhere",), "reference is not given"),
        (("images=x", "reference=x", "judge.others=[age,mood]"), "'mood'"),
        (("images=[a,b]", "reference=x"), "images must be one folder (measure several one after the other"),
        (("images=a", "reference=a", "originals=true"), "originals must be one folder"),
        (("images=one", "reference=one"), "images needs 2 images at least"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    faces(tmp_path / "one", seed=1, count=1)
    ended = Program(tmp_path)("task=evaluate", *overrides)
    assert ended.code == 2 and message in ended.complaint


def test_paths_are_taken_as_people_write_them(tmp_path: Path) -> None:
    program = Program(tmp_path)
    for name in ("a=b", "Köln ß (1), [2]"):
        faces(tmp_path / name, seed=1, count=2)
        bare = program("task=evaluate", f"images={name}", f"reference={name}")
        assert bare.code == 0 if name == "a=b" else bare.code == 2 and f"'images=\"{name}\"'" in bare.complaint
    program.done("task=evaluate", f'images="{name}"', f'reference="{name}"')
    (tmp_path / "a=b" / "00.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/a=b/\xff.png"))
    program.done("task=evaluate", 'images="a=b"', 'reference="a=b"')
    assert "no UTF-8" in program.refused("task=evaluate", 'images="\udcff"', "reference=x")


def test_a_classifier_of_ones_own_scores_by_its_yaml_alone(tmp_path: Path) -> None:
    faces(tmp_path / "images", seed=2, count=6)
    redness = np.array([[0.0, 30.0], [0.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    write(tmp_path / "red.onnx", {"skin": redness}, then="Softmax", shape=(1, 3, 32, 32))
    (tmp_path / "conf" / "judge").mkdir(parents=True)
    (tmp_path / "conf" / "judge" / "mine.yaml").write_text(f"""
scores:
  _target_: difflens.judges.onnx.OnnxJudge
  file: {tmp_path}/red.onnx
  mean: 0.5
  outputs: {{gender: {{output: skin, values: probabilities, classes: [male, female]}}}}
others: []
""")
    program = Program(tmp_path)
    given = ("task=evaluate", "images=images", "reference=images", "originals=null", "--config-dir=conf")
    program.done(*given, "judge=mine")
    metrics = program.json("metrics.json")
    images = [np.asarray(Image.open(path)).mean((0, 1))[0] for path in (tmp_path / "images").iterdir()]
    female = np.mean([red / 255 > 0.5 for red in images])
    assert 0 < female < 1 and metrics["protocol"]["judge"] == "red"
    assert metrics["rows"][0]["shares"]["female"]["share"] == pytest.approx(female)
    outputs = "judge.scores.outputs={gender:{values:probabilities,classes:[male,female]}}"
    chosen = ("judge=fairface", "judge/network@judge.scores=onnx", "judge.scores.file=red.onnx", "judge.others=[]")
    program.done(*given[:-1], *chosen, "judge.scores.mean=0.5", outputs)
    assert program.json("metrics.json")["rows"] == metrics["rows"]
