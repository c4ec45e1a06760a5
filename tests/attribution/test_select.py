"""Selecting features, and the sets of a causal control."""

import pytest
import torch

from difflens.attribution.select import ablation_sets, contrast, select_features
from difflens.vocabulary import Attribute, FeatureScores

GENDER = Attribute("gender", ("female", "male"))


def scores(female: list[float], male: list[float], attribute: Attribute = GENDER) -> FeatureScores:
    per_step = torch.tensor([female, male])[:, None].expand(2, 2, -1) / 2
    return FeatureScores(attribute, per_step)


def test_a_latent_that_drives_every_class_alike_is_not_selected() -> None:
    found = select_features(scores([9.0, 1.0, 0.0, 0.2], [9.0, 0.0, 1.0, 0.0]), top=2)
    assert found.latents == {"female": (1, 3), "male": (2,)}


def test_plain_ranking_takes_the_top_scores_whatever_drives_the_other_classes_and_whatever_their_sign() -> None:
    found = select_features(scores([9.0, 1.0, -1.0, 0.2], [9.0, -4.0, -1.0, -2.0]), top=3, rank="plain")
    assert found.latents == {"female": (0, 1, 3), "male": (0, 2, 3)}
    assert {len(latents) for latents in found.latents.values()} == {3}


def test_contrast_of_a_class_is_against_the_mean_of_the_others() -> None:
    values = torch.tensor([[3.0], [1.0], [2.0]])
    torch.testing.assert_close(contrast(values), torch.tensor([[1.5], [-1.5], [0.0]]))


def test_specificity_drops_latents_that_drive_another_attribute() -> None:
    own = scores([1.0, 0.9, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0])
    other = scores([1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], Attribute("glasses", ("without", "with")))
    assert select_features(own, top=1).latents["female"] == (0,)
    assert select_features(own, top=1, others=[other], specificity=1.0).latents["female"] == (1,)


def test_one_count_per_class() -> None:
    own = scores([1.0, 0.9, 0.0, 0.0], [0.0, 0.0, 1.0, 0.5])
    assert select_features(own, top={"female": 2, "male": 0}).latents == {"female": (0, 1), "male": ()}


def test_no_driving_latent_is_an_error() -> None:
    with pytest.raises(ValueError, match="no latent drives 'gender'"):
        select_features(scores([1.0, 1.0], [1.0, 1.0]), top=1)


def test_controls_are_alive_not_in_top_and_fire_as_much_as_top() -> None:
    own = torch.linspace(-1, 1, 40)
    scores = FeatureScores(GENDER, torch.stack([own, -own])[:, None])
    activation = torch.ones(2, 40)
    activation[:, 36:] = 3.0
    activation[0, 18:20] = 0
    sets = ablation_sets(scores, activation, size=4, seed=0)
    assert set(sets["female"]["top"]) == {36, 37, 38, 39} and set(sets["male"]["top"]) == {0, 1, 2, 3}
    bottom, random = sets["female"]["bottom"], sets["female"]["random"]
    assert len(bottom) == len(random) == 12, "latents that fire a third as much are three times as many"
    assert set(bottom) <= {*range(11, 18), *range(20, 28)}
    assert not {*random, *bottom} & {18, 19, 36, 37, 38, 39}
    assert 3 <= len(sets["male"]["bottom"]) <= 4, "four of its own, each firing once"


def test_plain_scores_may_give_other_sets_than_contrast() -> None:
    scores = FeatureScores(GENDER, torch.tensor([[9.0, 2.0, 1.0, 0.5, 0.0], [9.0, 0.0, 0.0, 0.0, 0.0]])[:, None])
    for rank, top in (("contrast", {1, 2}), ("plain", {0, 1})):
        sets = ablation_sets(scores, torch.ones(2, 5), size=2, seed=0, rank=rank)
        assert set(sets["female"]["top"]) == top


def test_too_little_activation_outside_of_top_is_an_error() -> None:
    ranks = torch.arange(10.0)
    scores = FeatureScores(GENDER, torch.stack([ranks, -ranks])[:, None])
    activation = torch.zeros(2, 10)
    activation[:, -1] = 1.0
    with pytest.raises(ValueError, match="fire more than all"):
        ablation_sets(scores, activation, size=4, seed=0)
