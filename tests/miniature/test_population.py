"""Populations meet their shares exactly; prompts fix what they name, and all else keeps the bias of the profession."""

import pytest
import torch

from difflens.metrics.functional import discrepancy
from difflens.miniature.faces import FACTORS, WORKPLACE_FACTORS, render
from difflens.miniature.population import (
    POPULATIONS,
    Conditional,
    Population,
    PromptedFaces,
    draw_prompted_faces,
    named_population,
)
from difflens.miniature.reference import render_population

JOBS = WORKPLACE_FACTORS["profession"]
BIASED, WORKPLACE = POPULATIONS["biased"], POPULATIONS["workplace"]
# Age hangs on gender here, and gender on the profession.
CHAINED = Population(
    {
        "profession": {"none": 0.0} | {name: 1 / 8 for name in JOBS[1:]},
        "race": dict(White=0.7, Black=0.1, Asian=0.1, Indian=0.1),
    },
    {
        "gender": Conditional(
            "profession", {job: {"female": i / 10, "male": 1 - i / 10} for i, job in enumerate(JOBS)}
        ),
        "age": Conditional(
            "gender", {"female": dict(young=0.6, adult=0.3, old=0.1), "male": dict(young=0, adult=0, old=1)}
        ),
    },
)


def shares(index: torch.Tensor, name: str) -> torch.Tensor:
    return torch.bincount(index, minlength=len(WORKPLACE_FACTORS[name])).double() / len(index)


def correlation(*columns: torch.Tensor) -> torch.Tensor:
    return torch.corrcoef(torch.stack([column.double() for column in columns]))


def test_the_shares_are_met_exactly_and_give_the_papers_discrepancy() -> None:
    faces = BIASED.sample(10_000, seed=0)
    assert shares(faces["gender"], "gender").tolist() == [0.34, 0.66]
    assert shares(faces["age"], "age").tolist() == [0.25, 0.55, 0.20]
    assert float(discrepancy(torch.tensor([0.34, 0.66]), torch.tensor([0.5, 0.5]))) == pytest.approx(0.226, abs=5e-4)


def test_a_conditional_factor_depends_on_its_parent_alone() -> None:
    faces = BIASED.sample(20_000, seed=0)
    for age, share in enumerate((0.12, 0.20, 0.50)):
        assert float((faces["glasses"][faces["age"] == age] == 1).double().mean()) == pytest.approx(share, abs=1e-3)
    assert float((correlation(faces["glasses"], faces["gender"], faces["hair"]) - torch.eye(3)).abs().max()) < 0.03
    torch.testing.assert_close(BIASED.share_vector("glasses"), shares(faces["glasses"], "glasses"), rtol=0, atol=1e-3)


def test_faces_depend_on_the_seed_alone() -> None:
    first, again, other = (BIASED.sample(5_000, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(index, again[name]) for name, index in first.items())
    assert not torch.equal(first["gender"], other["gender"])
    drawn, redrawn = (draw_prompted_faces(CHAINED, 500, seed=3) for _ in range(2))
    assert torch.equal(drawn.prompt, redrawn.prompt) and drawn.prompts == redrawn.prompts
    assert all(torch.equal(index, redrawn.factors[name]) for name, index in drawn.factors.items())


def test_professions_have_the_biases_they_are_known_for() -> None:
    faces = WORKPLACE.sample(40_000, seed=0)
    found: dict[str, list[float]] = {"gender": [], "age": [], "race": []}
    for index, profession in enumerate(JOBS[1:], start=1):
        worn = faces["profession"] == index
        assert int(worn.sum()) == 5_000
        for name, distances in found.items():
            drawn = shares(faces[name][worn], name)
            trained = torch.tensor(list(WORKPLACE.conditional[name].shares[profession].values())).double()
            torch.testing.assert_close(drawn, trained, rtol=0, atol=2e-4)
            assert float(drawn.min()) >= 0.04
            distances.append(float(discrepancy(drawn, torch.full_like(drawn, 1 / len(drawn)))))
    assert sum(found["gender"][:4]) / 4 >= 0.5
    assert all(0.2 <= distance <= 0.45 for name in ("age", "race") for distance in found[name])
    nurses = {name: index[faces["profession"] == 4] for name, index in faces.items()}
    pairs = correlation(*(nurses[name] for name in ("gender", "age", "race", "smile", "hair")))
    assert float((pairs - torch.eye(5)).abs().max()) < 0.05
    assert float(correlation(nurses["age"], nurses["glasses"])[0, 1]) > 0.15


def test_only_populations_that_name_professions_have_them() -> None:
    assert set(BIASED.sample(10, seed=0)) == set(BIASED.factors) == set(FACTORS)
    assert set(WORKPLACE.sample(10, seed=0)) == set(WORKPLACE_FACTORS)


RULES = WORKPLACE.conditional


@pytest.mark.parametrize(
    ("described", "rules", "message"),
    [
        ({"gender": {"female": 0.5, "male": 0.6}}, {}, "sum to 1"),
        ({"gender": {"female": 1.0}}, {}, "each of"),
        ({"hat": {"yes": 1.0}}, {}, "unknown factor 'hat'"),
        (WORKPLACE.shares, {"glasses": RULES["glasses"], "age": RULES["age"]}, "put 'age' first"),
        ({}, {"age": RULES["age"]}, "of which these faces have none"),
        ({}, {"glasses": Conditional("age", {"old": {"without": 0.5, "with": 0.5}})}, "needs shares for each"),
    ],
)
def test_impossible_populations_are_refused(described: dict, rules: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Population(described, rules)


def test_a_reference_is_named_or_given_and_drawn_in_eight_bits() -> None:
    images = render_population(300, "balanced", seed=4)
    assert images.dtype == torch.uint8 and torch.equal(images, render_population(300, named_population("balanced")))
    expected = render(named_population("balanced").sample(300, seed=4))
    torch.testing.assert_close(images.float() / 255, expected, atol=0.5 / 255 + 1e-6, rtol=0)
    with pytest.raises(ValueError, match="no population 'fair'; there are uniform, biased, balanced"):
        render_population(4, "fair")


@pytest.fixture(scope="module")
def faces() -> PromptedFaces:
    return draw_prompted_faces(CHAINED, 40_000, seed=0)


def rows(faces: PromptedFaces, prompt: str) -> torch.Tensor:
    return faces.prompt == faces.prompts.index(prompt)


def share(faces: PromptedFaces, prompt: str, factor: str, value: int) -> float:
    return float((faces.factors[factor][rows(faces, prompt)] == value).double().mean())


def test_prompts_are_as_frequent_as_asked(faces: PromptedFaces) -> None:
    assert int(rows(faces, "").sum()) == 4_000
    assert {int(rows(faces, f"a face of a {name}").sum()) for name in JOBS[1:]} == {18_000 // 8}
    genders = sum(rows(faces, f"a face of a {g} {name}").sum() for g in ("female", "male") for name in JOBS[1:])
    assert int(genders) == pytest.approx(18_000 / 7, abs=1)
    assert len(faces.prompts) == 1 + 8 * 3 * 4 * 5


def test_a_prompt_is_true_of_its_face(faces: PromptedFaces) -> None:
    for text in ("a face of an old Asian female doctor", "a face of an Indian pilot", "a face of a young male nurse"):
        for factor, values in WORKPLACE_FACTORS.items():
            named = [i for i, value in enumerate(values) if value in text.split() and value not in ("with", "without")]
            assert all(share(faces, text, factor, value) == 1 for value in named)


def test_what_is_not_named_stays_biased_and_what_is_named_is_uniform(faces: PromptedFaces) -> None:
    assert share(faces, "a face of a nurse", "gender", 0) == pytest.approx(0.4, abs=1e-3)
    by_race = [rows(faces, f"a face of {race} nurse") for race in ("a White", "a Black", "an Asian", "an Indian")]
    genders = faces.factors["gender"][torch.stack(by_race).any(0)]
    assert float((genders == 0).double().mean()) == pytest.approx(0.4, abs=2e-3)
    assert share(faces, "", "race", 0) == 0.7
    counts = [int(picked.sum()) for picked in by_race]
    assert max(counts) - min(counts) <= 40
    # Gender's name overrules its share but not what follows from it.
    assert share(faces, "a face of a male nurse", "age", 2) == 1
    assert share(faces, "a face of a female nurse", "age", 0) == pytest.approx(0.6, abs=0.05)
