"""Debias Anything: its gradient and its formula beside plain ones, what its adaptor learns, and whom it leaves alone."""

import pytest
import torch
from tiny_pipeline import hook_free, images, plan, tiny_pipeline, tiny_text_to_image, tiny_unconditional
from torch import Tensor

from difflens.methods import debias_anything
from difflens.methods.base import Given
from difflens.methods.debias_anything import (
    DIRECTIONS,
    DebiasAnything,
    GuidedByPlaces,
    class_directions,
    first_weights,
    placed_by,
)
from difflens.models.base import Batch
from difflens.models.model import DiffusionModel
from difflens.models.sampling import estimate
from difflens.vocabulary import UNTOUCHED, Attribute, PerImage, Site

GENDER = Attribute("gender", ("female", "male"))
EMBED = 5
ALL = (0.0, 1e9)


def learnt(model: DiffusionModel, site: Site) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shape = torch.Size(model.site_shape(site))
    weights = first_weights(shape, EMBED, model.steps, 2, generator)
    weights |= {name: 0.5 * torch.randn(value.shape, generator=generator) for name, value in weights.items()}
    return weights | {DIRECTIONS: torch.randn(2, EMBED, generator=generator)}


def edit(model: DiffusionModel, sigmas: tuple[float, float] = ALL) -> GuidedByPlaces:
    site = Site(branch=model.default_branch)
    return GuidedByPlaces(GENDER, learnt(model, site), site=site, sigmas=sigmas).with_strength(torch.tensor([3.0, 7.0]))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_guided_clean_image_moves_by_the_published_formula(prediction: str) -> None:
    model = tiny_text_to_image(tiny_pipeline(prediction_type=prediction))
    guided = edit(model)
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 24, 12)
    t, step = int(model.timesteps[1]), 1
    rows, both = torch.cat([x, x]), torch.cat([torch.zeros_like(text), text])
    with torch.no_grad():
        plain = model.unet(rows, t, encoder_hidden_states=both).sample.chunk(2)
        with guided.attach(model, Batch(PerImage(torch.tensor([1, UNTOUCHED])), x)):
            moved = model.unet(rows, t, encoder_hidden_states=both).sample.chunk(2)
    # Guidance as the pipeline makes it, and ∇_y by autograd through the whole network at y = x/√ᾱ.
    clean = [estimate(model.pipeline.scheduler, u + 3.0 * (c - u), t, x).clean for u, c in (plain, moved)]
    alpha = float(model.pipeline.scheduler.alphas_cumprod[t])
    y = (x[:1] / alpha**0.5).requires_grad_()
    seen: list[Tensor] = []
    handle = model.unet.mid_block.register_forward_hook(lambda _, __, output: seen.append(output))
    model.unet(alpha**0.5 * y, t, encoder_hidden_states=text[:1])
    handle.remove()
    score = (placed_by(guided.weights, seen[0], step) * guided.directions[1]).sum()
    (slope,) = torch.autograd.grad(score, y)
    expected = 7.0 * (1 - alpha) / alpha * slope
    torch.testing.assert_close((clean[1] - clean[0])[:1], expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))
    assert float(expected.abs().max()) > 0
    assert torch.equal(moved[1][1], plain[1][1]) and torch.equal(moved[0], plain[0])
    assert hook_free(model)


@pytest.mark.parametrize("make", [tiny_text_to_image, tiny_unconditional])
@pytest.mark.parametrize("kind", [torch.no_grad, torch.inference_mode])
def test_images_come_nearer_to_their_class_and_others_stay(make: type, kind: type) -> None:
    model = make()
    guided = edit(model, (0.0, 10.0))
    site, last = guided.site, model.steps - 1
    places: dict[str, Tensor] = {}

    def read(name: str, method: GuidedByPlaces | None) -> dict[int, Tensor]:
        def keep(step: int, h: Tensor) -> None:
            if step == last:
                places[name] = placed_by(guided.weights, h.float(), step)

        return images(model, plan([0, 1], [0, UNTOUCHED]), method=method, readers={site: keep})

    with kind():
        plain, made = read("plain", None), read("guided", guided)
        towards = guided.directions[0]
        assert float(places["guided"][0] @ towards) > float(places["plain"][0] @ towards)
    assert torch.equal(made[1], plain[1]) and not torch.equal(made[0], plain[0])


def test_only_steps_in_the_range_of_noise_are_edited() -> None:
    model = tiny_unconditional()
    alphas = model.pipeline.scheduler.alphas_cumprod
    sigmas = [float(((1 - alphas[int(t)]) / alphas[int(t)]) ** 0.5) for t in model.timesteps]
    guided = edit(model, (sigmas[3], sigmas[2]))
    outputs: dict[str, list[Tensor]] = {"plain": [], "guided": []}
    for name in outputs:
        # The next step's input tells whether this one was edited.
        keep = model.unet.register_forward_pre_hook(
            lambda _, args, name=name: outputs[name].append(args[0][:2].clone())
        )
        images(model, plan([0, 1], [0, 1]), method=guided if name == "guided" else None)
        keep.remove()
    same = [torch.equal(*pair) for pair in zip(outputs["plain"], outputs["guided"], strict=True)]
    assert same == [True, True, True, False, False]


def test_the_adaptor_is_asked_at_the_studied_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    few, asked = tiny_unconditional(steps=8).resampled(steps=4), []

    def gradient(
        _: object, __: object, call: tuple[tuple[Tensor, ...], dict], ___: object, step: int, *____: object
    ) -> Tensor:
        asked.append(step)
        return torch.zeros_like(call[0][0])

    monkeypatch.setattr(debias_anything, "gradient", gradient)
    images(few, plan([0], [0]), method=edit(few))
    assert asked == [0, 2, 4, 6]


def test_directions_lead_from_the_mean_of_the_classes_to_each() -> None:
    places = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [9.0, 9.0]])
    found = class_directions(GENDER, torch.tensor([0, 0, 1, -1]), places)
    expected = torch.tensor([[2.0, -1.0], [-2.0, 1.0]]) / 5**0.5
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="no learning image is 'male'"):
        class_directions(GENDER, torch.tensor([0, 0, 0, 0]), places)


def test_the_adaptor_learns_where_images_end() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(48, 6, 3, 3, generator=generator)
    # The place is what two channels say on average, and step 1 speaks with the opposite sign.
    places = torch.nn.functional.normalize(maps.mean((2, 3))[:, :3], dim=1)
    case = Given(
        GENDER,
        Site(),
        2,
        maps=lambda step: (maps * (1 - 2 * step))[:40],
        labels=lambda: torch.arange(40) % 2,
        embeddings=lambda: places[:40],
    )

    def agreement(epochs: int) -> float:
        weights = DebiasAnything(epochs=epochs, batch=8, lr=1e-2).learn(case)
        told = [placed_by(weights, (maps * (1 - 2 * step))[40:], step) for step in (0, 1)]
        return float(torch.stack([(each * places[40:]).sum(1).mean() for each in told]).min())

    assert agreement(60) > agreement(0) + 0.3


def test_other_sites_are_refused() -> None:
    with pytest.raises(ValueError, match=r"set data\.site\.tensor=output"):
        DebiasAnything().learn(Given(GENDER, Site(tensor="input"), 4))
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        DebiasAnything(sigma_min=3.0, sigma_max=1.0)
