"""A user's own pipeline, edited from outside, gives what the models of this package give with the same edit."""

import pytest
import torch
from diffusers import DDIMPipeline
from tiny_pipeline import Shift, plan, tiny_pipeline, tiny_text_to_image
from torch import Tensor

from difflens.models.model import DiffusionModel
from difflens.models.sampling import image_generator, normal
from difflens.models.steered import edited_pipeline
from difflens.vocabulary import GenerationPlan, Site

TARGETS = torch.tensor([0, -1, 1, 0])


@pytest.mark.parametrize("update", ["asymmetric", "symmetric"])
def test_an_unconditional_pipeline_is_edited_as_the_model_is(model: DiffusionModel, update: str) -> None:
    edit = Shift(1.5, update=update, site=Site())
    (expected,) = model.sample(GenerationPlan(3, torch.arange(4), TARGETS), method=edit)
    pipe = DDIMPipeline(model.unet, model.pipeline.scheduler)
    pipe.set_progress_bar_config(disable=True)
    own = (pipe.unet, pipe.scheduler)

    def call() -> Tensor:
        generators = [image_generator(3, image_id) for image_id in range(4)]
        made = pipe(4, generators, num_inference_steps=5, output_type="np").images
        return torch.from_numpy(made).permute(0, 3, 1, 2)

    plain = call()
    asked: list[int] = []
    with edited_pipeline(pipe, edit, timesteps=model.timesteps, assign=lambda n: asked.append(n) or TARGETS):
        torch.testing.assert_close(call(), expected.images, rtol=0, atol=1e-5)
        call()
    assert asked == [4, 4], "the images of every call get their classes anew"
    assert (pipe.unet, pipe.scheduler) == own and torch.equal(call(), plain)
    assert not torch.allclose(plain, expected.images, atol=1e-3)


@pytest.mark.parametrize("update", ["asymmetric", "symmetric"])
@pytest.mark.parametrize(("amount", "target"), [(0.0, 0), (1.5, -1)])
def test_a_neutral_edit_changes_no_bit_and_pays_nothing(
    model: DiffusionModel, update: str, amount: float, target: int
) -> None:
    pipe, rows = DDIMPipeline(model.unet, model.pipeline.scheduler), []
    pipe.set_progress_bar_config(disable=True)

    def call() -> Tensor:
        return torch.from_numpy(
            pipe(4, torch.Generator().manual_seed(1), num_inference_steps=5, output_type="np").images
        )

    plain, edit = call(), Shift(amount, update=update, site=Site())
    model.unet.conv_out.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    with edited_pipeline(pipe, edit, timesteps=model.timesteps, assign=lambda n: torch.full((n,), target)):
        assert torch.equal(call(), plain)
    assert rows == [4] * 5


@pytest.mark.parametrize("update", ["asymmetric", "symmetric"])
def test_a_guided_text_to_image_pipeline_is_edited_as_the_model_is(update: str) -> None:
    pipe = tiny_pipeline()
    model, edit = tiny_text_to_image(pipe), Shift(2.0, update=update)
    wanted = plan([0, 1], [0, -1])
    (expected,) = model.sample(wanted, method=edit)
    latents = normal([image_generator(3, i) for i in (0, 1)], model.latent_shape, device=torch.device("cpu"))
    with edited_pipeline(pipe, edit, timesteps=model.timesteps, assign=lambda n: torch.tensor([0, -1])):
        made = pipe(
            list(wanted.prompts or ()), latents=latents, num_inference_steps=4, guidance_scale=3.0, output_type="pt"
        )
    torch.testing.assert_close(made.images, expected.images, rtol=0, atol=1e-5)


def test_another_grid_of_steps_is_refused_and_the_pipeline_is_whole_after_an_error(model: DiffusionModel) -> None:
    pipe = DDIMPipeline(model.unet, model.pipeline.scheduler)
    pipe.set_progress_bar_config(disable=True)
    own = pipe.unet
    with (
        pytest.raises(ValueError, match=r"found on 5 steps .* the pipeline makes 4 .* num_inference_steps=5"),
        edited_pipeline(pipe, Shift(1.0, site=Site()), timesteps=model.timesteps, assign=lambda n: torch.zeros(n)),
    ):
        pipe(2, num_inference_steps=4)
    assert pipe.unet is own and not own._forward_pre_hooks and not own.mid_block._forward_hooks
