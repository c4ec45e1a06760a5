"""Redrawing replaces images by new draws that the labelling judge calls the class asked for, and edits none."""

import torch
from tiny_pipeline import images, tiny_unconditional
from torch import Tensor

from difflens.data.sampled import as_bytes
from difflens.methods.base import Given
from difflens.methods.redraw import Redraw
from difflens.models.model import DiffusionModel
from difflens.vocabulary import UNTOUCHED, Attribute, GenerationPlan, Site

GENDER = Attribute("gender", ("female", "male"))


def bright(pictures: Tensor) -> Tensor:
    """A judge of random images: which half of them is brighter."""
    light = pictures.float().mean((1, 2))
    return (light[:, 0] > light[:, 1]).long()


def redrawn(model: DiffusionModel, targets: list[int], draws: int = 64) -> dict[int, Tensor]:
    given = Given(GENDER, Site(), model.steps, model=model, classify=bright)
    plan = GenerationPlan(3, torch.arange(len(targets)), torch.tensor(targets))
    return images(model, plan, method=Redraw(draws=draws).edit(given, {}))


def test_every_image_shows_its_class_and_the_others_are_left() -> None:
    for eta in (0.0, 1.0):
        model = tiny_unconditional(eta=eta)
        targets = [0, 1, UNTOUCHED, 1, 0, UNTOUCHED]
        made, plain = redrawn(model, targets), images(model, GenerationPlan(3, torch.arange(6)))
        shown = bright(as_bytes(torch.stack([made[i] for i in range(6)])))
        assert [int(shown[i]) for i in (0, 1, 3, 4)] == [0, 1, 1, 0]
        assert all(torch.equal(made[i], plain[i]) for i in (2, 5))
        assert not any(torch.equal(made[i], plain[i]) for i in (0, 1, 3, 4)), "a redraw is a new image"


def test_a_redraw_depends_on_its_image_alone() -> None:
    model = tiny_unconditional()
    one, other = redrawn(model, [0, 1, 1, 0]), redrawn(model, [0, 0, UNTOUCHED, 1])
    assert torch.equal(one[0], other[0])


def test_the_last_draw_is_kept_whatever_it_shows() -> None:
    model = tiny_unconditional()
    few, many = redrawn(model, [0, 1, 1, 0], draws=1), redrawn(model, [0, 1, 1, 0])
    shown = bright(as_bytes(torch.stack([few[i] for i in range(4)])))
    assert all(torch.equal(few[i], many[i]) for i in range(4) if int(shown[i]) == [0, 1, 1, 0][i])
