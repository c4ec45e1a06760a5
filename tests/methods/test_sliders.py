"""Concept sliders: an adaptor is a change of weights, training follows the objective, the edit knows images and steps."""

import pytest
import torch
from tiny_pipeline import hook_free, images, plan, tiny_text_to_image
from torch import Tensor

from difflens.methods.base import Given, Window
from difflens.methods.sliders import ConceptSliders, SliderEdit, adapted, adapted_layers, first_weights
from difflens.models.model import DiffusionModel
from difflens.vocabulary import UNTOUCHED, Attribute, Site

GENDER = Attribute("gender", ("female", "male"))
RANK = 3


def given(model: DiffusionModel) -> Given:
    prompts = ("a face of a {} doctor", "a face of a {} nurse")
    return Given(GENDER, Site(), model.steps, model=model, prompts=prompts, words=("female", "male"))


def random_weights(model: DiffusionModel) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    made = first_weights(model.unet, 2, RANK, generator)
    return {name: 0.3 * torch.randn(value.shape, generator=generator) for name, value in made.items()}


def merged(model: DiffusionModel, weights: dict[str, Tensor], index: int, scale: float) -> DiffusionModel:
    """Another model whose weights are W + s/rank · up down: what the adaptors amount to."""
    other = tiny_text_to_image()
    for name, layer in adapted_layers(other.unet).items():
        up, down = weights[f"{name}.up"][index], weights[f"{name}.down"][index]
        layer.weight.data += scale / RANK * torch.einsum("or,r...->o...", up, down)
    return other


def test_adapting_is_changing_the_weights() -> None:
    model = tiny_text_to_image()
    weights = random_weights(model)
    edit = SliderEdit(GENDER, weights, window=Window()).with_strength(torch.tensor([0.5, 1.5]))
    made, plain = images(model, plan([0, 1], [1, UNTOUCHED]), method=edit), images(model, plan([0, 1]))
    assert torch.equal(made[1], plain[1]) and not torch.allclose(made[0], plain[0], atol=1e-3)
    torch.testing.assert_close(made[0], images(merged(model, weights, 1, 1.5), plan([0, 1]))[0], atol=1e-4, rtol=1e-4)
    assert hook_free(model)


def test_layers_are_the_released_ones() -> None:
    names = set(adapted_layers(tiny_text_to_image().unet))
    assert "mid_block.attentions.0.transformer_blocks.0.attn1.to_q" in names
    assert {
        "mid_block.resnets.0.conv1",
        "mid_block.resnets.0.time_emb_proj",
        "down_blocks.0.downsamplers.0.conv",
    } <= names
    assert not {name for name in names if "attn2" in name or ".ff." in name or name.startswith(("conv_", "time_"))}


@pytest.mark.parametrize(("steps", "same"), [(4, [True, True, False, False]), (2, [True, False])])
def test_steps_before_the_window_are_the_plain_ones(steps: int, same: list[bool]) -> None:
    studied = tiny_text_to_image()
    # A model sampled in fewer steps is edited at the same noise.
    model = studied.resampled(steps=steps)
    outputs: dict[str, list[Tensor]] = {"plain": [], "edited": []}
    for name in outputs:
        keep = model.unet.register_forward_hook(lambda _, __, output, name=name: outputs[name].append(output[0]))
        edit = SliderEdit(GENDER, random_weights(model), window=Window(0.5, 1.0)).with_strength(torch.ones(2))
        images(model, plan([0, 1], [0, 1]), method=edit if name == "edited" else None)
        keep.remove()
    assert [torch.equal(*pair) for pair in zip(outputs["plain"], outputs["edited"], strict=True)] == same


def test_what_is_wanted_is_the_neutral_estimate_and_eta_times_the_difference_of_the_classes() -> None:
    neutral, named = torch.randn(2, 1, 2, 2), torch.randn(3, 2, 1, 2, 2)
    found = ConceptSliders(eta=4.0).wanted(neutral, named, torch.tensor([2, 0]))
    torch.testing.assert_close(found[0], neutral[0] + 4 * (named[2, 0] - (named[0, 0] + named[1, 0]) / 2))
    torch.testing.assert_close(found[1], neutral[1] + 4 * (named[0, 1] - (named[1, 1] + named[2, 1]) / 2))


def test_training_brings_each_adaptors_estimate_nearer_to_what_is_wanted() -> None:
    model = tiny_text_to_image()
    method = ConceptSliders(updates=60, rank=2, lr=0.01)
    learnt = method.learn(given(model))
    assert hook_free(model)
    own, losses = torch.tensor([0, 1]), []
    for weights in (first_weights(model.unet, 2, 2, torch.Generator().manual_seed(0)), learnt):
        draws = torch.Generator().manual_seed(5)
        walk = method._trajectory(given(model), weights, own, draws)
        pairs = [next(walk) for _ in range(model.steps)]
        losses.append(torch.stack([(told - wanted).square().mean((1, 2, 3)) for told, wanted in pairs]).mean(0))
    assert bool((losses[1] < 0.9 * losses[0]).all()), losses


def test_an_adaptor_is_trained_as_it_would_be_alone() -> None:
    """The classes' updates share draws and nothing else."""
    model = tiny_text_to_image()
    weights = {name: value.requires_grad_() for name, value in random_weights(model).items()}
    x, text = torch.randn(2, *model.latent_shape), torch.randn(2, 24, 12)
    with adapted(model.unet, weights, torch.eye(2)):
        both = model.unet(x, 500, encoder_hidden_states=text).sample
    both[0].square().sum().backward()
    grads = [value.grad for value in weights.values()]
    assert all(grad is not None and float(grad[1].abs().max()) == 0 for grad in grads)
    assert any(float(grad[0].abs().max()) > 0 for grad in grads if grad is not None)
