"""Steering at several attentions at once: what is learnt, where it is added, and who is left alone."""

from typing import Any

import pytest
import torch
from tiny_pipeline import hook_free, images, plan, tiny_text_to_image, tiny_unconditional
from torch import Tensor

from difflens.methods.base import Given, Window
from difflens.methods.equisteer import BORDER, DIRECTION, LENGTH, EquiSteer, HeadEdit
from difflens.methods.icm import AttentionEdit, AttentionSteering, normal_of, steered_modules
from difflens.models.base import Batch
from difflens.models.model import DiffusionModel
from difflens.models.taps import as_tokens, attention_modules, tapped
from difflens.vocabulary import UNTOUCHED, Attribute, PerImage, Site

GENDER = Attribute("gender", ("female", "male"))


def halves(pictures: Tensor) -> Tensor:
    return torch.arange(len(pictures)) % 2


def given(model: DiffusionModel) -> Given:
    prompts = ("a face of a {} doctor",) if model.prompted else ()
    return Given(GENDER, Site(), model.steps, model=model, prompts=prompts, words=("female", "male"), classify=halves)


def test_a_tap_sees_the_conditional_rows_of_every_step() -> None:
    model = tiny_text_to_image()
    (name,) = attention_modules(model.unet.mid_block, "attn1")
    seen: list[tuple[int, tuple[int, ...]]] = []
    with tapped(model, 2, [f"mid_block.{name}"], lambda _, step, h: seen.append((step, tuple(h.shape)))):
        images(model, plan([0, 1]))
    assert [step for step, _ in seen] == [0, 1, 2, 3] and {shape for _, shape in seen} == {(2, 16, 16)}
    assert hook_free(model)


def test_the_normal_is_that_of_a_logistic_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    axis = torch.nn.functional.normalize(torch.randn(5, generator=generator), dim=0)
    x = torch.randn(400, 5, generator=generator)
    assert float(normal_of(x, (x @ axis) > 0) @ axis) > 0.99


@pytest.mark.parametrize("make", [tiny_text_to_image, tiny_unconditional])
def test_directions_are_unit_and_of_every_step_and_move_the_images_that_have_a_class(make: Any) -> None:
    model = make()
    method = AttentionSteering(images=12, window=Window())
    learnt = method.learn(given(model))
    assert {*learnt} == {*steered_modules(model)}
    for each in learnt.values():
        assert each.shape == (2, model.steps, 16)
        torch.testing.assert_close(each.norm(dim=-1), torch.ones(2, model.steps))
        torch.testing.assert_close(each[0], -each[1], atol=1e-3, rtol=0)
    edit = method.edit(given(model), learnt).with_strength(torch.tensor([4.0, 4.0]))
    made, plain = images(model, plan([0, 1], [0, UNTOUCHED]), method=edit), images(model, plan([0, 1]))
    assert torch.equal(made[1], plain[1]) and not torch.equal(made[0], plain[0])
    still = images(model, plan([0, 1], [0, 1]), method=edit.with_strength(torch.zeros(2)))
    assert all(torch.equal(still[i], plain[i]) for i in (0, 1)) and hook_free(model)


def test_what_is_added_is_the_strength_along_the_direction_at_every_position() -> None:
    model = tiny_text_to_image()
    (name,) = (f"mid_block.{each}" for each in attention_modules(model.unet.mid_block, "attn1"))
    direction = torch.nn.functional.normalize(torch.randn(2, 4, 16), dim=-1)
    edit = AttentionEdit(GENDER, {name: direction}, window=Window(0.5, 1.0)).with_strength(torch.tensor([3.0, 5.0]))
    values: dict[str, list[Tensor]] = {"plain": [], "edited": []}
    with tapped(model, 2, [name], lambda _, __, h: values["plain"].append(h.clone())):
        images(model, plan([0, 1]))
    batch = Batch(PerImage(torch.tensor([1, 0])), torch.zeros(2, *model.latent_shape))
    with edit.attach(model, batch), tapped(model, 2, [name], lambda _, __, h: values["edited"].append(h.clone())):
        images(model, plan([0, 1]))
    first, third = (values["edited"][step] - values["plain"][step] for step in (0, 2))
    assert not first.any()
    expected = torch.stack([5.0 * direction[1, 2], 3.0 * direction[0, 2]])[:, None].expand(2, 16, 16)
    torch.testing.assert_close(as_tokens(third), expected, atol=1e-4, rtol=1e-4)


def test_equisteer_learns_what_the_words_add_and_spares_images_that_have_it() -> None:
    model = tiny_text_to_image()
    method = EquiSteer(images=4)
    learnt = method.learn(given(model))
    modules = [f"{name}.to_out.0" for name in attention_modules(model.unet, "attn2")]
    assert {name for name in learnt if name.startswith(DIRECTION)} == {f"{DIRECTION}{name}" for name in modules}
    for name in modules:
        assert learnt[f"{LENGTH}{name}"].shape == (2, 4)
        torch.testing.assert_close(learnt[f"{DIRECTION}{name}"].norm(dim=-1), torch.ones(2, 4))
    edit = method.edit(given(model), learnt).with_strength(torch.ones(2))
    open_gate = HeadEdit(GENDER, {**learnt, BORDER: torch.full((2,), torch.inf)}, window=Window())
    shut = HeadEdit(GENDER, {**learnt, BORDER: torch.full((2,), -torch.inf)}, window=Window())
    plain = images(model, plan([0, 1]))
    made = images(model, plan([0, 1], [0, UNTOUCHED]), method=open_gate.with_strength(torch.ones(2)))
    assert torch.equal(made[1], plain[1]) and not torch.equal(made[0], plain[0])
    left = images(model, plan([0, 1], [0, 1]), method=shut.with_strength(torch.ones(2)))
    assert all(torch.equal(left[i], plain[i]) for i in (0, 1))
    assert edit.border.shape == (2,) and hook_free(model)


def test_the_gate_of_equisteer_does_not_depend_on_the_order_of_what_was_learnt() -> None:
    model = tiny_text_to_image()
    learnt = EquiSteer(images=4).learn(given(model))
    gate = min(name for name in learnt if name.startswith(DIRECTION))
    # It reads 0 there, which is open; every other attention reads more, which would be shut.
    learnt |= {gate: torch.zeros_like(learnt[gate]), BORDER: torch.full((2,), 1e-6)}
    in_files_order = dict(sorted(learnt.items(), reverse=True))
    made = [
        images(
            model,
            plan([0, 1], [0, 1]),
            method=HeadEdit(GENDER, each, window=Window()).with_strength(torch.ones(2)),
        )
        for each in (learnt, in_files_order)
    ]
    plain = images(model, plan([0, 1]))
    assert all(torch.equal(made[0][i], made[1][i]) and not torch.equal(made[0][i], plain[i]) for i in (0, 1))
