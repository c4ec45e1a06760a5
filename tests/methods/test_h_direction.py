"""The class directions are mean differences, and the edit adds them to exactly the images that are pushed."""

import pytest
import torch

from difflens.methods.base import Given, Window
from difflens.methods.h_direction import DIRECTIONS, HDirection, class_directions
from difflens.probes.linear import LinearProbe
from difflens.vocabulary import NO_FACE, UNTOUCHED, Attribute, PerImage, Site

AGE = Attribute("age", ("young", "adult", "old"))
LABELS = torch.tensor([0, 1, 2, 1, 0, NO_FACE, 2, 1])
MAPS = torch.randn(8, 4, 2, 2, generator=torch.Generator().manual_seed(0)).half()
STEPS = 3


def given(**more: object) -> Given:
    return Given(AGE, Site(), STEPS, maps=lambda step: MAPS * (step + 1), labels=lambda: LABELS, **more)  # type: ignore[arg-type]


def test_a_direction_is_the_classs_mean_less_that_of_all_other_classes() -> None:
    learnt = HDirection().learn(given())[DIRECTIONS]
    assert learnt.shape == (3, STEPS, 4, 2, 2)
    for index in range(3):
        own, rest = MAPS[index == LABELS].double(), MAPS[(index != LABELS) & (LABELS >= 0)].double()
        torch.testing.assert_close(learnt[index, 0], (own.mean(0) - rest.mean(0)).float())
    torch.testing.assert_close(learnt[:, 2], 3 * learnt[:, 0], rtol=1e-3, atol=1e-3)


def test_two_classes_have_opposite_directions() -> None:
    labels = (torch.arange(8) % 2).long()
    first, second = class_directions(MAPS, labels, torch.bincount(labels))
    torch.testing.assert_close(first, -second)


def test_the_edit_adds_strength_times_direction_and_touches_nothing_else() -> None:
    method = HDirection(window=Window(0.2, 1.0))
    learnt = method.learn(given())
    edit = method.edit(given(), learnt)
    h, images = MAPS.float(), PerImage(torch.tensor([0, 1, 2, UNTOUCHED, 0, UNTOUCHED, 1, 2]))
    assert torch.equal(edit(h, 1, images), h)  # of no strength yet
    edited = edit.with_strength(torch.tensor([1.0, 2.0, 0.0]))(h, 1, images)
    torch.testing.assert_close(edited[0], h[0] + learnt[DIRECTIONS][0, 1])
    torch.testing.assert_close(edited[1], h[1] + 2 * learnt[DIRECTIONS][1, 1])
    assert torch.equal(edited[[2, 3, 5, 7]], h[[2, 3, 5, 7]])
    assert not edit.active(0, 10) and edit.active(2, 10)


def test_held_classes_are_pushed_back_only_as_far_as_the_probe_says() -> None:
    probe = LinearProbe(STEPS, 3, 16)
    probe.bias[:, 0] = 50.0
    method = HDirection()
    learnt = method.learn(given())
    holder = method.holder(given(probe=probe), learnt)
    edited = holder(MAPS.float(), 0, PerImage(torch.tensor([0, 1, 2, UNTOUCHED, 1, 1, 1, 1])))
    torch.testing.assert_close(edited[0], MAPS[0].float())
    torch.testing.assert_close(edited[1], MAPS[1].float() + learnt[DIRECTIONS][1, 0])


def test_it_leaves_places_alone_where_it_is_asked_to() -> None:
    method = HDirection(focus=0.8)
    assert method.edit(given(), method.learn(given())).focus == 0.8
    assert HDirection().edit(given(), method.learn(given())).focus == 0.0
    with pytest.raises(ValueError, match=r"focus must lie in \[0, 1\), and be 0 with mitigation\.update=symmetric"):
        HDirection(focus=0.8, update="symmetric")


def test_a_class_without_images_and_a_foreign_site_are_refused() -> None:
    nobody = Given(AGE, Site(), 1, maps=lambda _: MAPS, labels=lambda: torch.zeros(8, dtype=torch.int64))
    with pytest.raises(ValueError, match="no learning image is 'adult'"):
        HDirection().learn(nobody)
    edit = HDirection().edit(given(), HDirection().learn(given()))
    with pytest.raises(ValueError, match=r"directions are of maps \[4, 2, 2\], this site gives \[5, 2, 2\]"):
        edit(torch.zeros(1, 5, 2, 2), 0, PerImage(torch.tensor([0])))
