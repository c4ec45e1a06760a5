"""An audit ranks what a generator or a folder shows, by judges alone."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image
from program import Program

from difflens.report.audit_page import brief_grid, grid_of, result_sentence
from difflens.tasks.audit import ALL, audited, by_class, ranked


class Reader:
    """A judge that knows two attributes, or has another name for one."""

    name = fingerprint = "reader"
    not_validated: tuple[str, ...] = ()

    def __init__(self, **classes: tuple[str, ...]) -> None:
        self.classes = classes

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        raise AssertionError("its answers are given")


def logits(labels: list[int], classes: int) -> torch.Tensor:
    return 9.0 * torch.nn.functional.one_hot(torch.tensor(labels), classes).float()


def test_rows_are_ranked_by_what_chance_does_not_explain_and_judges_are_compared() -> None:
    first = Reader(gender=("female", "male"), age=("young", "old", "other"))
    second = Reader(gender=("male", "female"), mood=("glad", "sad"))
    gender, age = [0] * 40 + [1] * 40, [0] * 60 + [1] * 20
    answers = [
        {"gender": logits(gender, 2), "age": logits(age, 3)},
        {"gender": logits([1 - g for g in gender[:76]] + gender[76:], 2), "mood": logits([0] * 80, 2)},
    ]
    answers[0]["gender"][0] = answers[0]["age"][0] = torch.nan
    prompts = {"one": torch.arange(20), ALL: torch.arange(80)}
    rows = ranked(audited([first, second], answers, prompts, skip=None))
    by = {(row["attribute"], row["prompt"]): row for row in rows}
    assert rows[0]["attribute"] == "gender+age" and rows[0]["prompt"] == "one", "all of one class among four"
    assert by["gender", ALL] is [row for row in rows if not row["intersection"]][-1]
    assert by["gender", ALL]["n"] == 79 and by["gender", ALL]["missing"] == 1
    assert by["gender", ALL]["judges_agree"] == pytest.approx(75 / 79), "classes are matched by name"
    assert by["age", ALL]["judges_agree"] is None and set(by["age", ALL]["shares"]) == {"young", "old"}
    assert by["gender", "one"]["fd_low"] > 0.3 and by["gender", "one"]["fd_high"] == pytest.approx(0.5**0.5)
    assert by["gender+age", ALL]["shares"]["female+young"]["share"] == pytest.approx(39 / 79)
    assert {row["attribute"] for row in audited([first, second], answers, prompts, skip="age")} == {"gender"}
    assert "Most skewed" in result_sentence({"rows": rows}) and result_sentence({"rows": []}).startswith("No judge")


def test_what_nobody_validated_says_so_in_every_row_with_it() -> None:
    first = Reader(gender=("female", "male"), race=("a", "b"))
    first.not_validated = ("race",)
    answers = [{"gender": logits([0] * 9 + [1], 2), "race": logits([0] * 10, 2)}] * 2
    rows = ranked(audited([first, first], answers, {ALL: torch.arange(10)}, skip=None))
    data = {"rows": rows, "prompts": []}
    named = {line[0] for crossed in (False, True) for line in grid_of(data, intersections=crossed).rows}
    assert named == {"gender", "race (not validated)", "gender+race (not validated)"}
    assert {line[0] for line in brief_grid(data, most=9).rows} == {"gender", "race (not validated)"}
    assert result_sentence(data).startswith("Most skewed: gender+race (not validated) in ")
    assert {(line["attribute"], line["validated"]) for line in by_class(rows)} >= {("race", False), ("gender", True)}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(tmp_path_factory.mktemp("audit"))


def test_a_model_is_audited_under_every_prompt_with_nothing_trained(program: Program) -> None:
    program.done("task=audit", "model=mini_sd", "model.micro_batch=8", "task.per_prompt=2")
    found = program.json("audit.json")
    assert len(found["prompts"]) == 8 and found["images"] == 16
    attributes = {row["attribute"] for row in found["rows"]}
    assert {"gender", "age", "race", "shirt", "gender+age+race"} <= attributes and "profession" not in attributes
    assert {entry["kind"] for entry in program.json("manifest.json")["artifacts"]} == {"images"}
    page = (program.latest / "report.html").read_text()
    assert "a face of a gardener" in page and "data:image/png" in page and 'src="http' not in page


def test_a_folder_is_audited_without_a_model(program: Program, tmp_path: Path) -> None:
    made = Path(program.latest / "images" / "audit")
    for number, path in enumerate(sorted(made.glob("*.png"))):
        Image.open(path).save(tmp_path / f"face {number}.png")
    ended = program.done("task=audit", f"images='{tmp_path}'")
    found = program.json("audit.json")
    assert found["images"] == 16 and {row["prompt"] for row in found["rows"]} == {ALL}
    assert "drawn-proxies" not in (program.latest / "report.html").read_text() and "warning" not in ended.out
    lines = list(csv.DictReader((program.latest / "audit.csv").open()))
    assert {line["class"] for line in lines if line["attribute"] == "gender"} == {"female", "male"}
    Image.new("RGB", (64, 48)).save(tmp_path / "a photograph.png")
    ended = program("task=audit", f"images='{tmp_path}'")
    assert ended.code == 0 and "the numbers mean nothing on photographs" in " ".join(ended.out.split())
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no usable image" in program.refused("task=audit", f"images='{empty}'")
