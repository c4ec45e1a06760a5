from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate

from difflens.metrics.functional import discrepancy
from difflens.miniature.faces import FACTORS, WORKPLACE_FACTORS
from difflens.miniature.population import Conditional, Population

BIASED = Population(
    shares={"gender": {"female": 0.34, "male": 0.66}, "age": {"young": 0.25, "adult": 0.55, "old": 0.20}},
    conditional={
        "glasses": Conditional(
            "age",
            {
                "young": {"without": 0.9, "with": 0.1},
                "adult": {"without": 0.8, "with": 0.2},
                "old": {"without": 0.4, "with": 0.6},
            },
        )
    },
)


def shares(factors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return torch.bincount(factors[name], minlength=len(FACTORS[name])).double() / len(factors[name])


def test_the_shares_are_met_exactly_and_give_the_papers_discrepancy() -> None:
    faces = BIASED.sample(10_000, seed=0)
    assert shares(faces, "gender").tolist() == [0.34, 0.66]
    assert shares(faces, "age").tolist() == [0.25, 0.55, 0.20]
    half = torch.tensor([0.5, 0.5])
    assert float(discrepancy(shares(faces, "gender"), half)) == pytest.approx(0.226, abs=5e-4)


def test_a_conditional_factor_depends_on_its_parent_alone() -> None:
    faces = BIASED.sample(20_000, seed=0)
    old = faces["age"] == 2
    assert float((faces["glasses"][old] == 1).double().mean()) == pytest.approx(0.6, abs=1e-3)
    assert float((faces["glasses"][faces["age"] == 0] == 1).double().mean()) == pytest.approx(0.1, abs=1e-3)
    both = (faces["glasses"] == 1).double(), (faces["gender"] == 0).double()
    assert abs(float(torch.corrcoef(torch.stack(both))[0, 1])) < 0.03
    torch.testing.assert_close(BIASED.share_vector("glasses"), shares(faces, "glasses"), rtol=0, atol=1e-3)


def workplace() -> Population:
    path = Path(__file__).parents[2] / "conf/population/workplace.yaml"
    return instantiate(yaml.safe_load(path.read_text()), _convert_="all")


def test_professions_have_the_biases_they_are_known_for() -> None:
    population, faces = workplace(), workplace().sample(40_000, seed=0)
    found: dict[str, list[float]] = {"gender": [], "age": [], "race": []}
    for index, profession in enumerate(WORKPLACE_FACTORS["profession"][1:], start=1):
        worn = faces["profession"] == index
        assert int(worn.sum()) == 5_000
        for name, distances in found.items():
            drawn = shares({name: faces[name][worn]}, name)
            trained = torch.tensor(list(population.conditional[name].shares[profession].values())).double()
            torch.testing.assert_close(drawn, trained, rtol=0, atol=2e-4)
            assert float(drawn.min()) >= 0.04
            distances.append(float(discrepancy(drawn, torch.full_like(drawn, 1 / len(drawn)))))
    assert sum(found["gender"][:4]) / 4 >= 0.5
    assert all(0.2 <= distance <= 0.45 for name in ("age", "race") for distance in found[name])


def test_attributes_are_independent_given_the_profession() -> None:
    faces = workplace().sample(40_000, seed=0)
    nurses = {name: index[faces["profession"] == 4].double() for name, index in faces.items()}
    pairs = torch.corrcoef(torch.stack([nurses[name] for name in ("gender", "age", "race", "smile", "hair")]))
    assert float((pairs - torch.eye(5)).abs().max()) < 0.05
    assert float(torch.corrcoef(torch.stack([nurses["age"], nurses["glasses"]]))[0, 1]) > 0.15


def test_only_populations_that_name_professions_have_them() -> None:
    assert set(BIASED.sample(10, seed=0)) == set(BIASED.factors) == set(FACTORS)
    assert set(workplace().sample(10, seed=0)) == set(WORKPLACE_FACTORS)


def test_a_factor_comes_after_the_one_it_depends_on() -> None:
    rules = workplace().conditional
    with pytest.raises(ValueError, match="put 'age' first"):
        Population(workplace().shares, {"glasses": rules["glasses"], "age": rules["age"]})
    with pytest.raises(ValueError, match="of which these faces have none"):
        Population({}, {"age": rules["age"]})


def test_factors_are_independent_and_seeded() -> None:
    faces = BIASED.sample(20_000, seed=0)
    assert abs(float(torch.corrcoef(torch.stack([faces["gender"].double(), faces["hair"].double()]))[0, 1])) < 0.03
    assert all(torch.equal(index, BIASED.sample(20_000, seed=0)[name]) for name, index in faces.items())
    assert not torch.equal(faces["gender"], BIASED.sample(20_000, seed=1)["gender"])


@pytest.mark.parametrize(
    ("shares_", "message"),
    [
        ({"gender": {"female": 0.5, "male": 0.6}}, "sum to 1"),
        ({"gender": {"female": 1.0}}, "each of"),
        ({"hat": {"yes": 1.0}}, "unknown factor 'hat'"),
    ],
)
def test_impossible_shares_are_refused(shares_: dict[str, dict[str, float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Population(shares_)
