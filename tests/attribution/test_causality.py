import pytest
import torch

from difflens.attribution.causality import ablation_sets
from difflens.vocabulary import Attribute, FeatureScores

GENDER = Attribute("gender", ("female", "male"))


def test_the_sets_are_disjoint_from_top_alive_and_ranked() -> None:
    own = torch.linspace(-1, 1, 40)
    scores = FeatureScores(GENDER, torch.stack([own, -own])[:, None])
    activation = torch.ones(2, 40)
    activation[0, 18:20] = 0
    sets = ablation_sets(scores, activation, size=4, seed=0)
    assert set(sets["female"]["top"]) == {36, 37, 38, 39} and set(sets["male"]["top"]) == {0, 1, 2, 3}
    assert set(sets["female"]["bottom"]) == {17, 20, 21, 16} or set(sets["female"]["bottom"]) == {17, 20, 21, 22}
    assert not set(sets["female"]["random"]) & {18, 19, 36, 37, 38, 39}


def test_plain_scores_may_give_other_sets_than_contrast() -> None:
    scores = FeatureScores(GENDER, torch.tensor([[9.0, 2.0, 1.0, 0.5, 0.0], [9.0, 0.0, 0.0, 0.0, 0.0]])[:, None])
    for rank, top in (("contrast", {1, 2}), ("plain", {0, 1})):
        sets = ablation_sets(scores, torch.ones(2, 5), size=2, seed=0, rank=rank)
        assert set(sets["female"]["top"]) == top


def test_too_few_living_latents_are_an_error() -> None:
    scores = FeatureScores(GENDER, torch.randn(2, 1, 10))
    activation = torch.zeros(2, 10)
    with pytest.raises(ValueError, match="further latents fire on 'female'"):
        ablation_sets(scores, activation, size=4, seed=0)
