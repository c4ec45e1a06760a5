"""Places that an edit with a focus keeps follow the unedited trajectory, in models of ours and in pipelines of others."""

from collections.abc import Callable

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from tiny_pipeline import TEXTS, Shift, hook_free, images, plan, tiny_pipeline, tiny_text_to_image, tiny_unconditional
from torch import Tensor

from difflens.models.model import DiffusionModel
from difflens.models.sampling import image_generator, normal
from difflens.models.steered import edited_pipeline

FOCUS = 0.6


def focused(*, focus: float = FOCUS, amount: float = 2.0, release: float = 1.0) -> Shift:
    edit = Shift(amount)
    edit.focus, edit.release = focus, release  # type: ignore[attr-defined]
    return edit


def kept(before: Tensor, after: Tensor) -> float:
    """The share of an image's places that are as they were."""
    return float(torch.isclose(before, after, rtol=0, atol=1e-5).all(0).double().mean())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("made", [tiny_unconditional, tiny_text_to_image])
def test_what_is_kept_is_that_of_the_unedited_image(made: Callable[..., DiffusionModel], precision: str) -> None:
    model = made(precision=precision)
    latents: list[Tensor] = []
    if model.prompted:  # its images are decoded; the latents are what is kept place by place
        decode = model.pipeline.vae.decode
        model.pipeline.vae.decode = lambda z, *a, **k: latents.append(z.clone()) or decode(z, *a, **k)
    asked = plan([0, 1, 2, 3], [0, 0, -1, 0])
    before, after = images(model, asked), images(model, asked, method=focused())
    pairs = [(before[i], after[i]) for i in range(4)]
    if latents:
        pairs = list(zip(*torch.cat(latents).chunk(2), strict=True))
    for number, (plain, edited) in enumerate(pairs):
        share = kept(plain, edited)
        assert share == 1 if number == 2 else FOCUS - 0.02 <= share < 0.9
    assert hook_free(model)


def test_a_focus_costs_a_pass_of_the_denoiser_in_each_step_after_the_first_edited_one() -> None:
    model, rows = tiny_unconditional(), []
    counter = model.unet.conv_in.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    images(model, plan([0, 1, 2, 3], [0, 0, 0, 0]), method=focused())
    counter.remove()
    assert rows == [4] * (5 + 3)  # edited from the second step on, where both trajectories are still one


def test_places_that_are_let_go_are_the_models_own_from_there_on() -> None:
    model, rows, states = tiny_unconditional(), [], []
    counter = model.unet.conv_in.register_forward_pre_hook(lambda _, args: rows.append(args[0].clone()))
    asked, edit = plan([0, 1, 2, 3], [0, 0, 0, 0]), focused(release=0.6)
    # No edit in the released steps, so that they are plain ones.
    edit.active = lambda step, steps: step == 1  # type: ignore[method-assign]
    made = images(model, asked, method=edit)
    counter.remove()
    # Edited at the second of five steps, beside it at the third, and from the fourth on a single plain trajectory.
    assert len(rows) == 5 + 1
    x = rows[-2]
    scheduler = model.pipeline.scheduler
    for t in scheduler.timesteps[3:]:
        states.append(x)
        with torch.no_grad():
            x = scheduler.step(model.unet(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(torch.stack([*made.values()]), (x / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(states[1], rows[-1], rtol=0, atol=1e-5)
    held = images(model, asked, method=focused())
    assert not torch.allclose(torch.stack([*held.values()]), torch.stack([*made.values()]), atol=1e-3)


def test_a_pipeline_of_others_is_edited_so_too() -> None:
    model, pipe = tiny_text_to_image(), tiny_pipeline()
    asked = plan([0, 1], [0, 0])
    expected = images(model, asked, method=focused())
    noise = normal([image_generator(3, i) for i in (0, 1)], (4, 8, 8), device=torch.device("cpu"))
    pipe.set_progress_bar_config(disable=True)
    with edited_pipeline(pipe, focused(), timesteps=model.timesteps, assign=lambda n: torch.zeros(n).long()):
        for _ in range(2):  # a call leaves nothing behind for the next
            made = pipe(list(TEXTS), latents=noise, num_inference_steps=4, guidance_scale=3.0, output_type="pt").images
            torch.testing.assert_close(made, torch.stack([expected[0], expected[1]]), rtol=0, atol=1e-4)


def test_a_call_that_starts_in_the_middle_of_the_steps_takes_nothing_over_from_the_one_before() -> None:
    pipe = tiny_pipeline()
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    pipe = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 4, "strength": 0.5, "guidance_scale": 3.0, "output_type": "pt"}

    def make(seed: int) -> Tensor:
        source = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        return pipe(list(TEXTS), image=source, generator=torch.Generator().manual_seed(seed), **settings).images

    timesteps, assign = tiny_text_to_image().timesteps, lambda n: torch.zeros(n).long()
    with edited_pipeline(pipe, focused(), timesteps=timesteps, assign=assign):
        alone = make(0)
    with edited_pipeline(pipe, focused(), timesteps=timesteps, assign=assign):
        make(1)
        torch.testing.assert_close(make(0), alone)
