"""A metric of a user's own package, one file and one YAML, is measured and shown wherever the shipped ones are."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from program import Ended, Program, own_package, undisturbed

from difflens.report.measures import Measure

MINE = '''
import torch
from torchmetrics import Metric


class Brightness(Metric):
    """Mean value of the pixels, times `factor`."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor
        self.add_state("total", torch.zeros(()).double(), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()).double(), dist_reduce_fx="sum")

    def update(self, images):
        self.total = self.total + images.double().mean((1, 2, 3)).sum()
        self.count = self.count + len(images)

    def compute(self):
        return self.factor * self.total / self.count


class Change(Brightness):
    """Mean absolute difference from the original's pixels."""

    def update(self, images, originals, features, probabilities):
        assert len(features) == len(images) == len(probabilities["gender"])
        super().update((images - originals).abs())


class Greedy(Brightness):
    def update(self, images, captions):
        super().update(images)
'''
YAML = """
defaults: [default, _self_]
measures:
  brightness: {_target_: my_metrics.Brightness, factor: 2.0, label: twice the brightness, unit: lx, digits: 2, better: 1}
  change: {_target_: my_metrics.Change, label: change of pixels, unit: "%", digits: 1, better: -1, meaning: mean of all}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """A program that finds every stage but the last done."""
    return undisturbed().copied(tmp_path_factory.mktemp("metrics") / "study")


@pytest.fixture(scope="module")
def mine(program: Program) -> Callable[..., Ended]:
    return own_package(program, "my_metrics", MINE, "metric/mine", YAML)


def test_a_users_own_metric_is_in_metrics_report_tables_comparison_and_sweep(
    program: Program, mine: Callable[..., Ended]
) -> None:
    before = json.loads((undisturbed().latest / "metrics.json").read_text())
    done = mine("metric=mine", "-m", "seed=0", "name=one", "strength=none,calibrated")
    assert done.code == 0, done.err + done.out
    assert "twice the brightness" in done.out and "change of pixels" in done.out, "the table of the terminal"
    sweep = max((program.folder / "outputs" / "sweeps").glob("*"))
    metrics = json.loads((sweep / "1" / "metrics.json").read_text())
    assert [each["key"] for each in metrics["measures"][-2:]] == ["brightness", "change"]
    assert metrics["measures"][:-2] == before["measures"], "the shipped ones stay, and stand first"
    original, edited = metrics["rows"]
    assert original["change"] is None and edited["change"] > 0 and 0 < original["brightness"] < 2
    # No number of the package's own has moved.
    for row, old in zip(metrics["rows"], before["rows"], strict=True):
        assert {key: value for key, value in row.items() if key not in ("brightness", "change")} == old
    page = (sweep / "1" / "report.html").read_text()
    assert "twice the brightness ↑" in page and f"<td>{original['brightness']:.2f} lx</td>" in page
    assert program("task=aggregate", f"sweep={sweep}").code == 0, "which needs the user's package no longer"
    table, comparison = ((sweep / f"table.{kind}").read_text() for kind in ("md", "html"))
    assert "change of pixels ↓" in table and f"{edited['brightness']:.2f} lx" in comparison
    assert "FD and change of pixels" in (sweep / "report.html").read_text()
    (row,) = [row for row in csv.DictReader((sweep / "results.csv").open()) if row["job"] == "1" and row["clip_i"]]
    assert float(row["change"]) == edited["change"]


def test_folders_are_measured_by_it_too_and_pairs_by_name(program: Program, mine: Callable[..., Ended]) -> None:
    folders = program.folder / "folders"
    shutil.copytree(undisturbed().latest / "images", folders)
    roles = (f"images={folders / 'difflens'}", f"originals={folders / 'original'}", f"reference={folders / 'original'}")
    done = mine("metric=mine", "task=evaluate", *roles)
    assert done.code == 0, done.err + done.out
    original, made = program.json("metrics.json")["rows"]
    pixels = [
        np.stack([np.asarray(Image.open(path)) for path in sorted((folders / name).glob("*.png"))]).astype(float) / 255
        for name in ("original", "difflens")
    ]
    assert original["change"] is None and made["change"] == pytest.approx(np.abs(pixels[1] - pixels[0]).mean())
    assert [row["brightness"] / 2 for row in (original, made)] == pytest.approx([each.mean() for each in pixels])


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (None, "metric.measures.fid must have label, unit, digits, better, meaning, got None"),
        ({"label": "FID", "better": 2}, "metric.measures.fid.better must be -1 (less), 0 or 1 (more), got 2"),
        ({"label": ""}, "metric.measures.fid.label must be a text that is not empty, got ''"),
    ],
)
def test_an_entry_must_describe_its_measure(entry: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        Measure.described("fid", entry, where="metric.measures")


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["metric.measures.fid.digits=-1"], "metric.measures.fid.digits must be a whole number from 0 to 15, got -1"),
        (["metric.measures=null"], "metric.measures"),
        (["metric.measures.brightness._target_=my_metrics.Greedy"], "update asks for captions; it may ask for images,"),
        (["metric.measures.brightness._target_=os.system"], "_target_ of metric.measures.brightness is 'os.system'"),
        (
            ["metric.measures.brightness.factor=2", "+metric.measures.change.size=1"],
            "unexpected keyword argument 'size'",
        ),
    ],
)
def test_a_broken_list_is_refused_in_one_line_before_any_stage(
    program: Program, mine: Callable[..., Ended], overrides: list[str], complaint: str
) -> None:
    known = len(program.artifacts())
    done = mine("metric=mine", *overrides, "data.base_seed=77")
    assert done.code == 2 and complaint in done.complaint, done.err + done.out
    assert len(program.artifacts()) == known


def test_more_cards_than_images_and_larger_subsets_than_images_are_cut_and_said(program: Program) -> None:
    done = program.done("metric.cards=1000", "metric.kid_subset=1000000")
    assert "have no learning image left to be shown on" in done.out
    protocol = program.json("metrics.json")["protocol"]
    assert protocol["kid_subset"] == "16 images, of which there are no 1000000"
    assert "kid subset 16 images" in (program.latest / "report.html").read_text()


def test_every_shipped_number_is_one_that_the_package_measures() -> None:
    from difflens.stages.listed import GROUPED, MEASURED

    for row in json.loads((undisturbed().latest / "metrics.json").read_text())["rows"]:
        assert set(row) <= {*MEASURED, *GROUPED, "beside_the_face"}
