import pytest
import torch

from difflens.methods.goals import read_goals
from difflens.vocabulary import Attribute, product

GENDER, AGE = Attribute("gender", ("female", "male")), Attribute("age", ("young", "adult", "old"))
PROMPTS = ("a doctor", "a nurse")


def test_a_product_takes_its_target_by_part_or_by_class() -> None:
    both = product([GENDER, AGE])
    assert both.classes[:4] == ("female+young", "female+adult", "female+old", "male+young")
    by_part = both.target({"gender": {"female": 0.75, "male": 0.25}})
    torch.testing.assert_close(by_part, torch.tensor([0.25] * 3 + [0.25 / 3] * 3, dtype=torch.float64))
    shares = {name: float(share) for name, share in zip(both.classes, by_part, strict=True)}
    torch.testing.assert_close(both.target(shares), by_part)
    with pytest.raises(ValueError, match="lacks a share for"):
        both.target({"female+old": 1.0})


def test_prompts_have_targets_of_their_own_or_equal_shares() -> None:
    goals = read_goals(GENDER, {"a doctor": {"female": 0.9, "male": 0.1}}, prompts=PROMPTS)
    assert goals.of("a doctor").tolist() == [0.9, 0.1] and goals.of("a nurse").tolist() == [0.5, 0.5]
    assert goals.pooled(["a doctor", "a nurse"]).tolist() == pytest.approx([0.7, 0.3])
    shared = read_goals(GENDER, {"female": 0.9, "male": 0.1}, prompts=PROMPTS)
    assert shared.of("a nurse").tolist() == shared.of(None).tolist() == [0.9, 0.1]
    both = product([GENDER, AGE])
    assert not read_goals(both, {"gender": {"female": 0.9, "male": 0.1}}, prompts=PROMPTS).own
    with pytest.raises(ValueError, match=r"names \['a pilot'\], which are no prompts of the study"):
        read_goals(GENDER, {"a pilot": {"female": 0.9, "male": 0.1}}, prompts=PROMPTS)
