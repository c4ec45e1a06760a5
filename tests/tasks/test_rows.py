"""Rows of metrics.json from made-up judges whose answers are known."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from difflens.data.folder import Reference
from difflens.judges.faces import float_pieces
from difflens.judges.protocol import ReferenceStatistics
from difflens.methods.assignment import Goals, read_goals
from difflens.metrics.functional import paired_cosine
from difflens.report.measures import Measure, measures_of, prices
from difflens.stages.generate import Steered
from difflens.stages.reading import Reading, Study, protocol, read_images, read_judge
from difflens.stages.rows import (
    NOWHERE,
    agreement,
    arrival,
    build_row,
    crossed_target,
    obedience,
    of_moved,
    outcomes_of,
    promised,
    with_intervals,
)
from difflens.store.artifacts import Artifact
from difflens.vocabulary import EVERY_CLASS, NO_FACE, UNTOUCHED, Attribute, GenerationPlan, product

SHARES = ("deviation_ratio", "entropy", "l1", "kl", "fd_squared_unbiased", "fd_corrected")
RACE = Attribute("race", ("Black", "White"))
GENDER = Attribute("gender", ("female", "male"))


class Judge:
    """Reads race off the first channel's brightness (White, Black, other), gender off the second; no face if all is black."""

    name, fingerprint = "made up", "0"
    classes = {"race": ("White", "Black", "other"), "gender": ("female", "male")}  # noqa: RUF012

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        level = images.mean((2, 3))
        race = 50 * torch.nn.functional.one_hot((level[:, 0] * 3).long().clamp(max=2), 3).float()
        gender = 50 * torch.nn.functional.one_hot((level[:, 1] > 0.5).long(), 2).float()
        black = (level.sum(1) == 0)[:, None]
        return {"race": race.masked_fill(black, torch.nan), "gender": gender.masked_fill(black, torch.nan)}


class Extractor(SimpleNamespace):
    name, dim, resize = "colours", 3, "none"

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

    def embed_images(self, images: Tensor) -> Tensor:
        return self(images) + 0.1

    def embed_texts(self, texts: list[str]) -> Tensor:
        return torch.eye(3)[: len(texts)]


def study(**changes: Any) -> Study:
    goals = Goals(torch.tensor([0.5, 0.5], dtype=torch.float64))
    settings = {"others": (GENDER,), "judge": Judge(), "extractor": Extractor(), "missing": "count", "kid_subset": 2}
    return Study(**{"attribute": RACE, "goals": goals, **settings, **changes})


def painted(*colours: tuple[int, int, int]) -> Tensor:
    return torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 4, 4)


WHITE, BLACK, REST, NOBODY = (60, 200, 10), (120, 200, 20), (250, 10, 30), (0, 0, 0)
IMAGES = painted(WHITE, BLACK, BLACK, REST, NOBODY, BLACK)
WHITE_WOMAN, BLACK_WOMAN = (60, 10, 10), (120, 10, 20)


def read(images: Tensor, asked: Study | None = None) -> Reading:
    return read_images(partial(float_pieces, images), torch.arange(len(images)), asked or study(), title="x")


def row(images: Tensor, **settings: Any) -> dict[str, Any]:
    asked = settings.pop("study", study())
    features = torch.rand(16, 3, generator=torch.Generator().manual_seed(0))
    statistics = ReferenceStatistics.from_features(features, extractor="colours", resize="none")
    return build_row("x", read(images, asked), asked, Reference(features, statistics), **settings)


def steered(before: Tensor, after: Tensor, targets: Tensor, labels: Tensor, *, prompts: Any = None) -> Steered:
    plan, stored = GenerationPlan(0, torch.arange(len(before)), prompts=prompts), Artifact("images", "", Path(), {}, {})
    return Steered(plan, before, after, targets, labels, (stored, stored))


def test_missing_faces_and_others_are_counted_and_leave_the_shares_whole() -> None:
    found = row(IMAGES)
    assert (found["n"], found["missing_faces"]) == (6, 1)
    other = {"images": 1, "share": pytest.approx(0.2), "probability": pytest.approx(0.2), "n": 5}
    assert found["other"] == {"race": other}
    # The rest has equal chances in both classes; the first of equals counts.
    assert found["shares"]["Black"]["share"] == pytest.approx(0.8)
    assert found["fd"] == pytest.approx(abs(0.7 - 0.5) * 2**0.5)
    assert found["intersectional_attributes"] == ["race", "gender"]


def test_a_missing_face_ends_the_measurement_where_that_is_asked_for() -> None:
    with pytest.raises(ValueError, match="no face in 1 of 6 images"):
        row(IMAGES, study=study(missing="error"))
    assert row(painted(*[BLACK, WHITE] * 3), study=study(missing="error"))["missing_faces"] == 0


def test_nothing_depends_on_the_pieces_that_images_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = row(IMAGES, prompts=["a", "b"] * 3)
    monkeypatch.setattr("difflens.judges.faces.AT_ONCE", 2 * 4 * 4)
    assert len(list(float_pieces(IMAGES))) == 3
    assert row(IMAGES, prompts=["a", "b"] * 3) == whole
    assert [found["n"] + found["missing_faces"] for found in whole["prompts"].values()] == [3, 3]


def test_pairs_without_a_face_are_told_and_not_taken_for_flips() -> None:
    after = painted(WHITE, BLACK, WHITE, REST, BLACK, NOBODY)
    before = read(IMAGES)
    found = row(after, original=before, edited=torch.tensor([False, False, True, False, True, True]))
    assert (found["edited"], found["pairs_without_face"]) == (3, 2)
    assert found["leakage"]["gender"]["flip_rate"] == 0
    assert row(after, study=study(others=()), original=before)["leakage"] == {}


def test_the_official_discrepancy_stands_beside_the_mapped_one() -> None:
    class Official(Judge):
        protocol = "official"

        def outputs(self, images: Tensor) -> Tensor:
            seen = torch.zeros(len(images), 18).index_fill(1, torch.tensor([0]), 50.0)
            return seen.masked_fill((images.sum((1, 2, 3)) == 0)[:, None], torch.nan)

    # All probability in the first of the four raw outputs that race is read from.
    assert row(IMAGES, study=study(judge=Official()))["fd_official"] == pytest.approx((0.75**2 + 3 * 0.25**2) ** 0.5)
    assert "fd_official" not in row(IMAGES)


def test_a_product_is_measured_whole_and_in_its_parts() -> None:
    both = product([RACE, GENDER])
    goals = Goals(both.target({"race": {"Black": 0.75, "White": 0.25}}))
    images = painted(WHITE, BLACK, BLACK, BLACK_WOMAN, BLACK, WHITE_WOMAN)
    found = row(images, study=study(attribute=both, goals=goals, others=()))
    counts = torch.tensor([1, 3, 1, 1]) / 6 - torch.tensor([0.375, 0.375, 0.125, 0.125])
    assert found["fd_hard"] == pytest.approx(float(counts.norm()))
    assert list(found["shares"]) == ["Black+female", "Black+male", "White+female", "White+male"]
    assert found["parts"]["race"]["fd_hard"] == pytest.approx(abs(4 / 6 - 0.75) * 2**0.5)
    assert found["parts"]["gender"]["fd_hard"] == pytest.approx(abs(2 / 6 - 0.5) * 2**0.5)


def test_every_prompt_is_held_to_its_own_target_and_to_what_it_names() -> None:
    goals = read_goals(RACE, {"a male": {"Black": 1.0, "White": 0.0}}, prompts=["a male", "a female"])
    images = painted(BLACK, WHITE, BLACK, BLACK, BLACK, WHITE)  # all male
    found = row(images, study=study(goals=goals, subject=GENDER), prompts=["a male"] * 3 + ["a female"] * 3)
    by_prompt = found["prompts"]
    assert by_prompt["a male"]["fd_hard"] == pytest.approx(2**0.5 / 3)
    assert by_prompt["a female"]["fd_hard"] == pytest.approx((2 / 3 - 0.5) * 2**0.5)
    assert found["fd_hard"] == pytest.approx(abs(4 / 6 - 0.75) * 2**0.5)
    assert [entry["obeyed"] for entry in by_prompt.values()] == [1.0, 0.0] and found["obeyed"] == 0.5
    with pytest.raises(ValueError, match="'a person' names none"):
        row(images, study=study(subject=GENDER), prompts=["a person"] * 6)


def test_product_classes_are_held_to_the_target_that_was_asked_for() -> None:
    goals = Goals(torch.tensor([0.75, 0.25], dtype=torch.float64))
    images = painted(*[BLACK] * 3, *[BLACK_WOMAN] * 3, WHITE, WHITE_WOMAN)
    found, equal = row(images, study=study(goals=goals)), row(images)
    assert found["intersectional_fd"] == pytest.approx(0, abs=1e-12) == found["intersectional"]["fd_hard"]
    assert equal["intersectional_fd"] == pytest.approx(0.25)
    summary = equal["intersectional"]
    assert (summary["n"], summary["missing_faces"]) == (8, 0) and summary["fd_max"] == pytest.approx(0.75**0.5)
    assert summary["fd_chance"] > 0 and summary["fd_squared_unbiased"] == pytest.approx(0.0625 - 0.6875 / 7)
    assert protocol(study(goals=goals))["intersectional_target"] == "race as asked for; gender in equal shares"


def test_the_target_of_product_classes_leaves_out_the_rest_and_what_is_not_crossed() -> None:
    both = product([Attribute("race", ("Black", "White", "other")), Attribute("smile", ("yes", "no"))])
    asked = torch.tensor([0.3, 0.1, 0.1, 0.1, 0.2, 0.2], dtype=torch.float64)
    target = crossed_target(study(attribute=both, others=(GENDER,)), asked)
    assert target.tolist() == [pytest.approx([1 / 3, 1 / 3]), pytest.approx([1 / 6, 1 / 6])]


def test_a_network_that_can_give_its_memory_back_reads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Heavy(Judge):
        def __call__(self, images: Tensor) -> dict[str, Tensor]:
            log.append("read")
            return super().__call__(images)

        def free(self) -> None:
            log.append("freed")

    monkeypatch.setattr("difflens.judges.faces.AT_ONCE", 2 * 4 * 4)
    found, together = read(IMAGES, study(judge=Heavy())).tensors(), read(IMAGES).tensors()
    assert log == ["read"] * 3 + ["freed"]
    assert all(torch.equal(found[name].nan_to_num(), kept.nan_to_num()) for name, kept in together.items())


def test_judges_that_differ_and_images_that_reach_their_class_are_told() -> None:
    asked, reading = study(), read(IMAGES)
    targets = torch.tensor([1, UNTOUCHED, 1, UNTOUCHED, 0, EVERY_CLASS])
    pushed = steered(IMAGES, IMAGES, targets, torch.tensor([1, 0, 1, NO_FACE, 0, 0]), prompts=("a", "b") * 3)
    assert agreement(reading, asked, pushed) == {"judges_agree": 0.75, "judges_agree_by_prompt": {"a": 0.5, "b": 1.0}}
    found = arrival(reading, reading, asked, pushed, group=1)
    # Of a white one, a black one, and one without a face, which shows no class.
    assert found["reached"] == found["reached_unedited"] == pytest.approx(1 / 3)
    # Wilson's interval of one of three.
    assert (found["reached_low"], found["reached_high"]) == pytest.approx((0.0615, 0.7923), abs=1e-4)
    # Images that one call couples are one case.
    coupled = arrival(reading, reading, asked, pushed, group=2)
    assert coupled["reached_low"] < found["reached_low"]
    nobody = steered(IMAGES, IMAGES, targets * 0 - 1, torch.full((6,), NO_FACE))
    assert agreement(reading, asked, nobody) == {"judges_agree": None}
    found = arrival(reading, reading, asked, nobody, group=1)
    assert found.items() <= NOWHERE.items() and not any(found.values())


def test_images_that_show_their_class_already_do_not_hide_what_a_change_costs() -> None:
    """Two show their class and stay as they are; of two that had to change one did, and lost its gender with it."""
    before, after = painted(WHITE, BLACK, BLACK, BLACK), painted(WHITE, BLACK, (60, 20, 10), BLACK)
    targets = torch.tensor([1, 0, 1, 1])
    first, second = read(before), read(after)
    outcomes = outcomes_of(first, second, study(), steered(before, after, targets, targets))
    found = of_moved(first, outcomes, study())
    cosine = float(paired_cosine(first.embeddings, second.embeddings)[2:].mean())
    assert cosine < 0.99 and found.pop("clip_i_moved") == pytest.approx(cosine)
    assert found == {"moved": 2, "reached_moved": 0.5, "nothing_else_moved": 0.5}
    assert with_intervals(outcomes, study(), None, group=1)["nothing_else"] == 0.75
    nobody = replace(outcomes, target=torch.full((4,), UNTOUCHED))
    assert [*of_moved(first, nobody, study()).values()] == [0, None, None, None]


def test_what_is_said_of_prompts_is_named_as_the_mean_over_them() -> None:
    """Opposite biases of two prompts: together their shares are even, and no number of one may pass for that of the other."""
    prompts, images = ("a", "a", "b", "b"), painted(BLACK, BLACK, WHITE, WHITE)
    known = study(recalls={"race": {"Black": 0.9, "White": 0.9}})
    reading = read(images, known)
    found = build_row("x", reading, known, None, prompts=prompts)
    targets = torch.full((4,), UNTOUCHED)
    left = steered(images, images, targets, targets, prompts=prompts)
    outcomes = outcomes_of(reading, reading, known, left)
    found |= with_intervals(outcomes, known, prompts, group=1) | promised(reading, known, left, prompts)
    assert found["fd_perfect_prompt_mean"] == pytest.approx(0.5**0.5) and found["fd_low_prompt_mean"] > 0
    assert not found.keys() & {"fd_low", "fd_high", "fd_perfect"}, "of all images together it is another number"
    listed = [{"key": key, "label": key} for key in (*SHARES, "fd_low", "fd_perfect")]
    measures = measures_of({"rows": [found], "measures": listed})
    shown = {measure.heading: measure.read(found) for measure in measures}
    for key, mean in zip(SHARES, (1.0, 0.0, 1.0, math.log(2), 0.5, 0.5**0.5), strict=True):
        assert shown[f"{key}, mean over prompts"] == pytest.approx(mean)
    assert shown["deviation_ratio, prompts pooled"] == 0 and shown["entropy, prompts pooled"] == 1
    assert "fd_low, mean over prompts" in shown and "fd_low, prompts pooled" not in shown
    assert not prices([Measure(key, key, better=-1) for key in SHARES]), "they are fairness, not what it costs"


def test_named_classes_that_images_show_are_counted_by_prompt_and_together() -> None:
    logits = read_judge(painted(BLACK, WHITE, WHITE, NOBODY, WHITE, NOBODY), study())
    prompts, named = ["Black", "Black", "White", "White", "a White", "none"], {"Black": 0, "White": 1, "a White": 1}
    found = obedience(logits, prompts, {**named, "none": 0}, RACE)
    assert found["named_obeyed"] == 0.75
    assert found["named"] == {
        "Black": {"class": "Black", "n": 2, "obeyed": 0.5},
        "White": {"class": "White", "n": 1, "obeyed": 1.0},
        "a White": {"class": "White", "n": 1, "obeyed": 1.0},
        "none": {"class": "Black", "n": 0, "obeyed": None},
    }


def test_fd_is_corrected_where_the_judges_recalls_are_known() -> None:
    known = study(recalls={"race": {"Black": 0.9, "White": 0.8}})
    assert row(IMAGES)["fd_corrected"] is None
    # It reads 4 of 5 as Black: (0.8 - 0.2) / 0.7 of them are.
    assert row(IMAGES, study=known)["fd_corrected"] == pytest.approx((0.6 / 0.7 - 0.5) * 2**0.5)
