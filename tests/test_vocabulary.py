import pytest

from difflens.vocabulary import Attribute, FeatureSet

AGE = Attribute("age", ("young", "adult", "old"))


def test_targets_are_read_by_class_name() -> None:
    assert AGE.target(None).sum() == 1
    assert AGE.target({"old": 0.5}).tolist() == [0.25, 0.25, 0.5]
    assert AGE.target({"old": 0.5, "young": 0.25, "adult": 0.25}).tolist() == [0.25, 0.25, 0.5]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"young": 0.5, "adult": 0.5, "old": 0.5}, "sum to 1"),
        ({"young": 1.5, "adult": -0.5, "old": 0.0}, "non-negative"),
        ({"young": 0.5, "adult": 0.5}, r"lacks a share for \['old'\]"),
        ({"young": 0.5, "adult": 0.25, "ancient": 0.25}, "no class 'ancient'"),
    ],
)
def test_impossible_targets_are_refused(shares: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AGE.target(shares)


def test_an_attribute_needs_distinct_classes() -> None:
    with pytest.raises(ValueError, match="two distinct classes"):
        Attribute("gender", ("female", "female"))


def test_a_feature_set_names_every_class() -> None:
    with pytest.raises(ValueError, match="latents for each"):
        FeatureSet(AGE, {"young": (1,)})
