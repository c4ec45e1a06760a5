"""Judges are asked by name, and reference statistics remember what they are."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from difflens.judges.protocol import (
    FeatureExtractor,
    Judge,
    ReferenceStatistics,
    faces_found,
    other_share,
    select_classes,
)
from difflens.vocabulary import Attribute


class Oracle:
    """A judge of four races and two genders."""

    name, fingerprint = "oracle", "0"

    classes: Mapping[str, tuple[str, ...]] = dict(race=("white", "black", "latino", "asian"), gender=("male", "female"))

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        return {name: torch.arange(float(len(names))).expand(len(images), -1) for name, names in self.classes.items()}


class Pixels:
    """The first two pixels as features."""

    name, dim, resize = "pixels", 2, "none"

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :2]


def test_columns_follow_the_attributes_order_by_name() -> None:
    judge = Oracle()
    assert isinstance(judge, Judge) and isinstance(Pixels(), FeatureExtractor)
    columns = select_classes(judge, Attribute("race", ("asian", "white")))
    assert judge(torch.zeros(1, 3, 2, 2))["race"][:, columns].tolist() == [[3.0, 0.0]]
    assert select_classes(judge, Attribute("gender", ("female", "male"))).tolist() == [1, 0]


def test_what_a_judge_does_not_know_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match=r"attribute 'age'.*\['race', 'gender'\]"):
        select_classes(Oracle(), Attribute("age", ("young", "old")))
    with pytest.raises(ValueError, match=r"no class \['Female'\] of 'gender'.*\['male', 'female'\]"):
        select_classes(Oracle(), Attribute("gender", ("male", "Female")))


def test_probability_outside_the_selected_classes_is_reported() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [math.nan] * 4]).log()
    assert other_share(logits, torch.tensor([0, 3])) == pytest.approx(0.5, abs=1e-6)
    assert other_share(logits, torch.tensor([3, 1, 2, 0])) == 0.0
    assert faces_found(logits).tolist() == [True, True, False]


def test_the_hash_depends_on_everything() -> None:
    features = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    made = ReferenceStatistics.from_features(features, extractor="pixels", resize="none")
    others = [
        ReferenceStatistics(made.mean + 1e-12, made.covariance, 30, "pixels", "none"),
        ReferenceStatistics(made.mean, made.covariance, 31, "pixels", "none"),
        ReferenceStatistics(made.mean, made.covariance, 30, "pixels", "bicubic"),
    ]
    assert len({made.sha256, *(other.sha256 for other in others)}) == 4
    with pytest.raises(ValueError, match="n ≥ 2"):
        ReferenceStatistics(made.mean, made.covariance[:1], 2, "pixels", "none")
