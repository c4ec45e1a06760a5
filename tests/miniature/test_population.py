import pytest
import torch

from difflens.metrics.functional import discrepancy
from difflens.miniature.faces import FACTORS
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
