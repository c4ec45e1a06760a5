"""What all methods share: strengths per class or per prompt and class, and what every edit is told of an image."""

import pytest
import torch
from torch import Tensor

from difflens.methods.base import Given, Method, SiteEdit, Window
from difflens.methods.calibration import read_dose
from difflens.methods.holding import Holding
from difflens.vocabulary import EVERY_CLASS, UNTOUCHED, Attribute, PerImage, Site

GENDER = Attribute("gender", ("female", "male"))
AGE = Attribute("age", ("young", "old"))


class AddStrength(SiteEdit):
    """Adds the strength of an image's class."""

    def read(self, h: Tensor) -> Tensor:
        return h

    def change(self, z: Tensor, step: int, target: Tensor, strength: Tensor, shown: Tensor | None) -> Tensor:
        return strength[:, None, None, None].expand_as(z)

    def write(self, h: Tensor, delta: Tensor, touched: Tensor) -> Tensor:
        return h + delta


def plain(attribute: Attribute = GENDER) -> SiteEdit:
    return AddStrength(attribute, site=Site(), update="symmetric", window=Window())


def test_every_image_gets_the_strength_of_its_prompt_and_class_and_unseen_prompts_the_mean_of_those_in_use() -> None:
    edit = plain().for_prompts(("doctor", "nurse", "pilot")).with_strength(torch.tensor([2.0, 0.0, 0.0, 3.0, 4.0, 0.0]))
    targets = torch.tensor([0, 1, 0, UNTOUCHED, 1, 0, 1])
    prompts = ("doctor", "doctor", "pilot", "doctor", "nurse", "builder", "builder")
    made = edit(torch.zeros(7, 1, 1, 1), 0, PerImage(targets, prompt=prompts))
    assert made.flatten().tolist() == [2, 0, 4, 0, 3, 3, 3]
    assert edit.strength.tolist() == [2, 0, 0, 3, 4, 0]


def test_what_is_held_follows_the_prompts_strength() -> None:
    edit = Holding(plain(), [plain(AGE).with_strength(torch.tensor([0.5, 0.25]))], ratio=2.0)
    edit = edit.for_prompts(("doctor", "nurse")).with_strength(torch.tensor([2.0, 1.0, 3.0, 4.0]))
    images = PerImage(
        torch.tensor([0, 1, UNTOUCHED, 1]), {"age": torch.tensor([1, 0, 1, 1])}, ("doctor", "nurse", "nurse", "nurse")
    )
    assert [attribute.name for attribute in edit.held] == ["age"]
    made = edit(torch.zeros(4, 1, 1, 1), 0, images).flatten().tolist()
    assert made == [2 + 2 * 2 * 0.25, 4 + 4 * 2 * 0.5, 0, 4 + 4 * 2 * 0.25]


def test_towards_every_class_the_strengths_add_up() -> None:
    edit = plain().with_strength(torch.tensor([2.0, 3.0]))
    made = edit(torch.zeros(3, 1, 1, 1), 0, PerImage(torch.tensor([EVERY_CLASS, UNTOUCHED, 1])))
    assert made.flatten().tolist() == [5, 0, 3]


def test_a_window_holds_whole_steps() -> None:
    assert [step for step in range(50) if Window(0.14, 0.2).holds(step, 50)] == [7, 8, 9]
    assert [step for step in range(50) if Window(0.02, 0.98).holds(step, 50)] == [*range(1, 49)]
    assert [step for step in range(10) if Window(0.001, 1.0).holds(step, 10)] == [*range(1, 10)]
    with pytest.raises(ValueError, match="start < stop"):
        Window(0.5, 0.5)


def test_a_method_that_cannot_hold_says_so() -> None:
    class Mine(Method):
        def edit(self, given: Given, learnt: object) -> SiteEdit:
            return plain()

    with pytest.raises(ValueError, match=r"Mine cannot hold other attributes .* mitigation\.hold\.attributes=\[\]"):
        Mine().holder(Given(GENDER, Site(), 1), {})


def test_doses_of_several_groups_are_those_of_each_group_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.randint(2, (40,), generator=generator) for _ in range(2))
    targets = torch.where(
        torch.rand(40, generator=generator) < 0.5, torch.randint(2, (40,), generator=generator), UNTOUCHED
    )
    groups = torch.arange(40) % 3
    whole = read_dose(torch.arange(6.0), before=before, after=after, targets=targets, groups=groups, classes=2)
    for group in range(3):
        rows = groups == group
        alone = read_dose(
            torch.zeros(2),
            before=before[rows],
            after=after[rows],
            targets=targets[rows],
            groups=torch.zeros(int(rows.sum()), dtype=torch.int64),
            classes=2,
        )
        for field in ("success", "shares", "held"):
            torch.testing.assert_close(getattr(whole, field).view(3, 2)[group], getattr(alone, field), equal_nan=True)
    pushed = (targets == 1) & (groups == 2)
    assert float(whole.success[5]) == float((after[pushed] == 1).double().mean())
