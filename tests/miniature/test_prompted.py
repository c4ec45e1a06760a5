"""Prompts fix what they name; all else keeps the bias of the profession."""

import pytest
import torch

from difflens.miniature.faces import WORKPLACE_FACTORS
from difflens.miniature.population import Conditional, Population
from difflens.miniature.prompted import PromptedFaces, draw_prompted_faces

JOBS = WORKPLACE_FACTORS["profession"]
POPULATION = Population(
    {
        "profession": {"none": 0.0} | {name: 1 / 8 for name in JOBS[1:]},
        "race": dict(White=0.7, Black=0.1, Asian=0.1, Indian=0.1),
    },
    {
        "gender": Conditional(
            "profession", {name: {"female": i / 10, "male": 1 - i / 10} for i, name in enumerate(JOBS)}
        ),
        "age": Conditional(
            "gender", {"female": dict(young=0.6, adult=0.3, old=0.1), "male": dict(young=0, adult=0, old=1)}
        ),
    },
)


@pytest.fixture(scope="module")
def faces() -> PromptedFaces:
    return draw_prompted_faces(POPULATION, 40_000, seed=0)


def rows(faces: PromptedFaces, prompt: str) -> torch.Tensor:
    return faces.prompt == faces.prompts.index(prompt)


def share(faces: PromptedFaces, prompt: str, factor: str, value: int) -> float:
    return float((faces.factors[factor][rows(faces, prompt)] == value).double().mean())


def test_prompts_are_as_frequent_as_asked(faces: PromptedFaces) -> None:
    assert int(rows(faces, "").sum()) == 4_000
    neutral = [rows(faces, f"a face of a {name}").sum() for name in JOBS[1:]]
    assert int(sum(neutral)) == 18_000 and {int(count) for count in neutral} == {2_250}
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
    # Age hangs on gender here, and gender's name overrules its share but not what follows from it.
    assert share(faces, "a face of a male nurse", "age", 2) == 1
    assert share(faces, "a face of a female nurse", "age", 0) == pytest.approx(0.6, abs=0.05)


def test_faces_depend_on_the_seed_alone() -> None:
    first, again = (draw_prompted_faces(POPULATION, 500, seed=3) for _ in range(2))
    assert torch.equal(first.prompt, again.prompt) and first.prompts == again.prompts
    assert all(torch.equal(index, again.factors[name]) for name, index in first.factors.items())
