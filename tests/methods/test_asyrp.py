"""Asyrp: its network is the published one, its loss has known values, and its training and its edit follow the equations."""

import math

import pytest
import torch
from tiny_pipeline import images, plan, tiny_text_to_image
from torch import Tensor, nn

from difflens.methods.asyrp import TIMES, Asyrp, delta_block, direction_loss, first_weights, time_embeddings
from difflens.methods.base import Given, Window
from difflens.models.model import DiffusionModel
from difflens.models.sampling import estimate
from difflens.vocabulary import UNTOUCHED, Attribute, PerImage, Site

GENDER = Attribute("gender", ("female", "male"))


class BrightnessClip:
    """Sees how bright the three colours are, and takes one class for red and the other for blue."""

    def embed_pixels(self, pictures: Tensor) -> Tensor:
        return nn.functional.normalize(pictures.mean((2, 3)) + 0.1, dim=1)

    embed_images = embed_pixels

    def embed_texts(self, texts: list[str]) -> Tensor:
        colours = {"a face of a female person": [1.0, 0, 0], "a face of a male person": [0, 0, 1.0]}
        return torch.tensor([colours.get(text, [0.0, 1.0, 0.0]) for text in texts])


def given(model: DiffusionModel, **more: object) -> Given:
    usual = {"words": GENDER.classes, "clip": BrightnessClip}
    return Given(GENDER, Site(), model.steps, model=model, **{**usual, **more})  # type: ignore[arg-type]


def test_the_network_is_that_of_torchs_own_layers() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = first_weights(64, 24, generator)
    weights |= {name: torch.randn(1, 64, generator=generator) for name in ("scale", "shift")}
    first, second, norm = nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 1), nn.GroupNorm(32, 64, eps=1e-6)
    time, silu = nn.Linear(24, 64), nn.SiLU()
    with torch.no_grad():
        for layer, name in ((first, "first"), (time, "time"), (second, "second")):
            layer.weight.copy_(weights[name].view_as(layer.weight))
            layer.bias.copy_(weights[f"{name}_bias"][0])
        norm.weight.copy_(weights["scale"][0])
        norm.bias.copy_(weights["shift"][0])
    h, t = torch.randn(3, 64, 4, 5, generator=generator), torch.randn(24, generator=generator)
    expected = second(silu(norm(first(h) + time(silu(t))[:, None, None])))
    torch.testing.assert_close(delta_block(h, t, weights), expected, rtol=1e-4, atol=1e-5)


def test_the_times_are_those_that_the_denoiser_gives_its_blocks(model: DiffusionModel) -> None:
    seen: list[Tensor] = []
    handle = model.unet.time_embedding.register_forward_hook(lambda _, __, output: seen.append(output[0]))
    for t in model.timesteps:
        model.unet(torch.zeros(1, *model.latent_shape), int(t))
    handle.remove()
    torch.testing.assert_close(time_embeddings(model), torch.stack(seen))


def test_the_loss_is_zero_along_the_texts_direction_and_log_2_at_a_right_angle() -> None:
    towards = torch.tensor([0.0, 2.0])
    found = direction_loss(torch.tensor([[0.0, 5.0], [3.0, 0.0], [1.0, 1.0]]), towards)
    expected = [0.0, math.log(2), -math.log((1 + math.sqrt(0.5)) / 2)]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=0)


def test_training_turns_images_towards_the_text_and_keep_holds_them(model: DiffusionModel) -> None:
    def told(keep: float, lr: float) -> float:
        method = Asyrp(images=4, rounds=12, batch=2, lr=lr, keep=keep, window=Window(0.0, 0.6))
        edit = method.edit(given(model), method.learn(given(model))).with_strength(torch.ones(2))
        wanted = plan([0, 1, 2, 3])
        before = images(model, wanted)
        after = images(model, plan([0, 1, 2, 3], [0, 0, 0, 0]), method=edit)
        change = torch.stack([after[i] - before[i] for i in range(4)]).mean((0, 2, 3))
        return float(change[0] - change[1])

    # From the same first weights: without a step of training the change is whatever these happen to make.
    assert told(0.0, 0.5) > told(0.0, 0.0) + 0.005
    assert told(100.0, 0.5) < told(0.0, 0.5)


def test_the_edited_estimate_serves_the_clean_image_alone(model: DiffusionModel) -> None:
    method = Asyrp(images=2, rounds=1, batch=2, window=Window(0.0, 1.0))
    learnt = method.learn(given(model))
    edit = method.edit(given(model), learnt).with_strength(torch.tensor([2.0, 2.0]))
    made = images(model, plan([0, 1], [1, UNTOUCHED]), method=edit)
    starts: list[Tensor] = []
    handle = model.unet.register_forward_pre_hook(lambda _, args: starts.append(args[0][:2].clone()))
    plain = images(model, plan([0, 1]))
    handle.remove()
    assert torch.equal(made[1], plain[1])
    # Eq. 5 of the paper, written out: √ᾱ′ x̂_0(ε(h + f)) + √(1 − ᾱ′) ε(h).
    x, scheduler, weights = starts[0][:1], model.pipeline.scheduler, {k: v[1:] for k, v in learnt.items() if k != TIMES}
    for step, t in enumerate(map(int, model.timesteps)):
        shift = lambda _, __, h, step=step: h + 2 * delta_block(h, learnt[TIMES][step], weights)  # noqa: E731
        with torch.no_grad():
            output = model.unet(x, t).sample
            handle = model.unet.mid_block.register_forward_hook(shift)
            edited = model.unet(x, t).sample
            handle.remove()
        last = step + 1 == model.steps
        alpha = 1.0 if last else float(scheduler.alphas_cumprod[int(model.timesteps[step + 1])])
        x = (
            alpha**0.5 * estimate(scheduler, edited, t, x).clean
            + (1 - alpha) ** 0.5 * estimate(scheduler, output, t, x).noise
        )
    torch.testing.assert_close(made[0], (x[0] / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)


def test_images_without_a_class_stay_and_others_get_their_own_network(model: DiffusionModel) -> None:
    method = Asyrp(images=2, rounds=1, batch=2)
    learnt = method.learn(given(model))
    edit = method.edit(given(model), learnt)
    h, targets = torch.randn(3, *model.site_shape(Site())), PerImage(torch.tensor([1, UNTOUCHED, 0]))
    assert torch.equal(edit(h, 1, targets), h), "of no strength yet"
    edited = edit.with_strength(torch.tensor([1.0, 3.0]))(h, 1, targets)
    own = {name: value[1:] for name, value in learnt.items() if name != TIMES}
    torch.testing.assert_close(edited[:1], h[:1] + 3 * delta_block(h[:1], learnt[TIMES][1], own))
    assert torch.equal(edited[1], h[1]) and not torch.equal(edited[2], h[2])


def test_prompts_words_and_slots_are_asked_for(model: DiffusionModel) -> None:
    with pytest.raises(ValueError, match="for models without prompts"):
        Asyrp().learn(given(tiny_text_to_image()))
    with pytest.raises(ValueError, match="from its classes' words"):
        Asyrp().learn(given(model, words=()))
    with pytest.raises(ValueError, match="exactly one slot"):
        Asyrp(text="a woman")
