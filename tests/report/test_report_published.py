"""Published beside measured: a difference is formed where what decides a number was alike, and nowhere else."""

from pathlib import Path
from typing import Any

import pytest
from sweep_folder import MEASURES

from difflens.report.published import beside_published
from difflens.report.run_folder import RunFolder

ALIKE = {
    "steps": 50,
    "assignment": "everyone",
    "judge": "fairface",
    "judge_protocol": "official",
    "faces": "whole image",
    "extractor": "inception",
    "resize": "clean",
    "clip": "ViT-L-14 openai",
}
THERE = [
    {"method": "original", "fd": 0.226, "fid": 33.38},
    {"method": "difflens", "fd": 0.002, "fid": 31.93, "clip_i_paper": 0.95},
]
HERE = [
    {"method": "original", "fd": 0.25, "fid": 30.0},
    {"method": "difflens", "fd": 0.01, "fid": 32.0, "clip_i_paper": 0.9},
]


def compared(*, n: int = 100, there: dict[str, Any] | None = None, **here: Any) -> dict[str, Any]:
    """The comparison of a run whose protocol is `ALIKE` but for `here`, with a table whose is `ALIKE` but for `there`."""
    stated = {"model": "p2", "n": 100, **ALIKE, "reference": "celeba", **(there or {})}
    metrics = {
        "model": "p2",
        "n": n,
        "protocol": {**ALIKE, "reference": {"name": "celeba", "n": 30, "sha256": "abc"}, "seed": 5, **here},
        "measures": MEASURES,
        "rows": HERE,
        "published": {"protocol": {key: value for key, value in stated.items() if value is not None}, "rows": THERE},
    }
    found = beside_published(RunFolder(Path(), metrics, {}, {}, {}, {}, config="", edits={}))
    assert found is not None
    return dict(found)


def gaps(found: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {line.label: line.gaps for line in found["lines"]}


CLIP_I = "CLIP-I, (cos + 1) / 2"
FD_GAPS, FID_GAPS, CLIP_GAPS = ("+0.024", "+0.008"), ("−3.38", "+0.07"), ("–", "−0.0500")
NONE = ("–", "–")


def test_alike_protocols_give_every_difference() -> None:
    found = compared()
    assert found["barred"] == [] and all(condition.same for condition in found["conditions"])
    assert gaps(found) == {"FD, soft": FD_GAPS, "FID": FID_GAPS, CLIP_I: CLIP_GAPS}
    assert found["lines"][0].cells == ("0.226", "0.002", "0.250", "0.010")
    assert found["lines"][2].cells == ("–", "0.9500", "–", "0.9000")


@pytest.mark.parametrize("differing", [{"n": 3}, {"steps": 20}])
def test_what_decides_every_number_bars_every_difference(differing: dict[str, Any]) -> None:
    found = compared(**differing)
    assert set(gaps(found).values()) == {NONE}
    (name,) = differing
    assert found["barred"] == [f"FD, soft: {name}", f"FID: {name}", f"{CLIP_I}, DiffLens: {name}"]


def test_the_assignment_decides_nothing_about_the_original() -> None:
    found = compared(assignment="iid")
    assert gaps(found) == {"FD, soft": (FD_GAPS[0], "–"), "FID": (FID_GAPS[0], "–"), CLIP_I: NONE}
    assert found["barred"] == [f"{measure}, DiffLens: assignment" for measure in ("FD, soft", "FID", CLIP_I)]


@pytest.mark.parametrize(
    ("differing", "barred"),
    [
        ({"judge": "clip"}, "FD, soft"),
        ({"judge_protocol": None}, "FD, soft"),
        ({"faces": "dlib"}, "FD, soft"),
        ({"extractor": "clip"}, "FID"),
        ({"resize": "bilinear"}, "FID"),
        ({"reference": {"name": "ffhq", "n": 30, "sha256": "abc"}}, "FID"),
        ({"clip": "ViT-B-32 openai"}, CLIP_I),
    ],
)
def test_an_instrument_decides_its_own_measures_alone(differing: dict[str, Any], barred: str) -> None:
    found = gaps(compared(**differing))
    expected = {"FD, soft": FD_GAPS, "FID": FID_GAPS, CLIP_I: CLIP_GAPS}
    assert found == {**expected, barred: NONE}


def test_a_distance_to_a_reference_that_was_not_published_is_never_subtracted() -> None:
    found = compared(there={"reference": None})
    assert gaps(found) == {"FD, soft": FD_GAPS, "FID": NONE, CLIP_I: CLIP_GAPS}
    assert found["barred"] == ["FID: reference"]
    assert [(c.there, c.here) for c in found["conditions"] if c.name == "reference"] == [("–", "celeba")]
    assert gaps(compared(there={"clip": None}))[CLIP_I] == NONE


def test_a_reference_is_compared_by_what_was_published_of_it() -> None:
    for described, same in (({"n": 30}, True), ({"name": "celeba", "n": 31}, False), ({"sha256": "abc"}, True)):
        assert (gaps(compared(there={"reference": described}))["FID"] == FID_GAPS) == same


def test_a_run_that_compares_with_nothing_has_no_such_section() -> None:
    assert beside_published(RunFolder(Path(), {}, {}, {}, {}, {}, config="", edits={})) is None
