import torch
from torch import Tensor

from difflens.methods.base import Mitigation, Window
from difflens.methods.calibration import read_dose
from difflens.methods.per_prompt import PerPromptMitigation
from difflens.vocabulary import UNTOUCHED, Attribute, Site

GENDER = Attribute("gender", ("female", "male"))
NOTHING = torch.empty(7, 0, dtype=torch.int64)


class AddStrength(Mitigation):
    """Adds the strength of an image's class."""

    strength = torch.zeros(2)

    def with_strength(self, strength: Tensor) -> "AddStrength":
        other = type(self)(self.attribute, site=self.site, update=self.update, window=self.window)
        other.strength = strength
        return other

    def __call__(self, h: Tensor, step: int, targets: Tensor) -> Tensor:
        added = self.strength[targets.clamp_min(0)] * (targets >= 0)
        return h + added[:, None, None, None].to(h)


def test_every_image_gets_the_strength_of_its_prompt_and_class_and_unseen_prompts_the_mean_of_those_in_use() -> None:
    plain = AddStrength(GENDER, site=Site(), update="symmetric", window=Window())
    edit = PerPromptMitigation(plain, ("doctor", "nurse", "pilot"))
    edit = edit.with_strength(torch.tensor([2.0, 0.0, 0.0, 3.0, 4.0, 0.0]))
    targets = torch.tensor([0, 1, 0, UNTOUCHED, 1, 0, 1])
    prompts = ["doctor", "doctor", "pilot", "doctor", "nurse", "builder", "builder"]
    made = edit(torch.zeros(7, 1, 1, 1), 0, edit.aims(targets, NOTHING, prompts))
    assert made.flatten().tolist() == [2, 0, 4, 0, 3, 3, 3]


class HoldAge(AddStrength):
    """Tells what it holds in the hundreds of its targets."""

    held = (Attribute("age", ("young", "old")),)

    def aims(self, targets: Tensor, shown: Tensor, prompts: object) -> Tensor:
        return torch.where(targets >= 0, targets + 100 * shown[:, 0], UNTOUCHED)

    def __call__(self, h: Tensor, step: int, targets: Tensor) -> Tensor:
        return super().__call__(h, step, torch.where(targets >= 0, targets % 100, UNTOUCHED)) + 0.5 * (targets >= 100)[
            :, None, None, None
        ].to(h)


def test_what_the_edit_itself_must_be_told_reaches_it() -> None:
    plain = HoldAge(GENDER, site=Site(), update="symmetric", window=Window())
    edit = PerPromptMitigation(plain, ("doctor", "nurse")).with_strength(torch.tensor([2.0, 1.0, 3.0, 4.0]))
    targets, shown = torch.tensor([0, 1, UNTOUCHED, 1]), torch.tensor([[1], [0], [1], [1]])
    aims = edit.aims(targets, shown, ["doctor", "nurse", "nurse", "nurse"])
    assert [a.name for a in edit.held] == ["age"]
    assert edit(torch.zeros(4, 1, 1, 1), 0, aims).flatten().tolist() == [2.5, 4, 0, 4.5]


def test_doses_of_several_groups_are_those_of_each_group_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.randint(2, (40,), generator=generator) for _ in range(2))
    targets = torch.where(torch.rand(40, generator=generator) < 0.5, torch.randint(2, (40,), generator=generator), -1)
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
