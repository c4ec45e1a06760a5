from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from tiny_pipeline import MIDDLE, TEXTS, Shift, hook_free, images, plan, tiny_pipeline, tiny_text_to_image
from torch import Tensor

from difflens.models.model import DiffusionModel
from difflens.models.sampling import image_generator, normal
from difflens.vocabulary import UNTOUCHED, Site

SITES = [
    MIDDLE,
    Site("mid_block", "input", branch="cond"),
    Site("mid_block", "update", branch="cond"),
    Site("mid_block", branch="uncond"),
    Site("mid_block", branch="both"),
    Site("up_blocks.0.attentions.1", branch="cond"),
    Site("up_blocks.0", "input", branch="cond"),
    Site("down_blocks.1.resnets.0", branch="both"),
    Site("down_blocks.1.attentions.0", "update", branch="cond"),
]


@pytest.fixture(scope="module")
def tiny() -> DiffusionModel:
    return tiny_text_to_image()


@pytest.mark.parametrize("site", SITES, ids=str)
@pytest.mark.parametrize("update", ["symmetric", "asymmetric"])
def test_a_neutral_edit_changes_no_bit_and_a_real_one_the_touched_image_alone(
    tiny: DiffusionModel, site: Site, update: str
) -> None:
    plain = images(tiny, plan([0, 1]))
    for image_id, image in images(tiny, plan([0, 1], [0, 0]), method=Shift(0.0, update, site)).items():
        assert torch.equal(image, plain[image_id])
    edit = Shift(3.0, update, site)
    made = images(tiny, plan([0, 1], [UNTOUCHED, 0]), method=edit)
    torch.testing.assert_close(made[0], plain[0], rtol=0, atol=1e-5)
    assert (made[1] - plain[1]).abs().max() > 1e-3
    assert edit.steps == [1, 2, 3]
    assert set(edit.shapes) == {(2, *tiny.site_shape(site))}
    assert hook_free(tiny) and type(tiny.pipeline.scheduler) is DDIMScheduler


@pytest.mark.parametrize("site", SITES, ids=str)
def test_equal_estimates_reproduce_the_plain_pipeline(tiny: DiffusionModel, site: Site) -> None:
    # The smallest change there is: it takes the edited path, to estimates that are equal but for rounding.
    edit = Shift(lambda h: torch.nextafter(h, torch.tensor(torch.inf)), "asymmetric", site)
    plain = images(tiny, plan([0, 1]))
    for image_id, image in images(tiny, plan([0, 1], [0, 0]), method=edit).items():
        torch.testing.assert_close(image, plain[image_id], rtol=0, atol=1e-5)


@pytest.mark.parametrize("branch", ["cond", "uncond", "both"])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_the_asymmetric_step_is_two_guided_passes_and_one_update(branch: str, rescale: float) -> None:
    model = tiny_text_to_image(guidance_rescale=rescale)
    edit = Shift(2.0, site=Site("mid_block", branch=branch))
    made = images(model, plan([0, 1], [0, 0]), method=edit)
    expected = reference(model, branch, rescale)
    for image_id in (0, 1):
        torch.testing.assert_close(made[image_id], expected[image_id], rtol=0, atol=1e-5)


def reference(model: DiffusionModel, branch: str, rescale: float) -> Tensor:
    """The asymmetric sampler written out: every U-Net pass by itself, v-prediction, guidance, rescaling, DDIM."""
    pipeline, unet, ddim = model.pipeline, model.pipeline.unet, model.pipeline.scheduler
    ddim.set_timesteps(4)
    x = normal([image_generator(3, i) for i in (0, 1)], (4, 8, 8), device=torch.device("cpu"))
    cond, uncond = pipeline.encode_prompt(list(TEXTS), x.device, 1, True)

    def velocity(text: Tensor, t: int, shift: float) -> Tensor:
        handle = unet.mid_block.register_forward_hook(lambda _, __, h: h + shift)
        output = unet(x, t, encoder_hidden_states=text).sample
        handle.remove()
        return output

    def guided(t: int, shifts: dict[str, float]) -> Tensor:
        u, c = velocity(uncond, t, shifts.get("uncond", 0.0)), velocity(cond, t, shifts.get("cond", 0.0))
        v = u + 3.0 * (c - u)
        scaled = v * c.std(dim=(1, 2, 3), keepdim=True) / v.std(dim=(1, 2, 3), keepdim=True)
        return rescale * scaled + (1 - rescale) * v

    with torch.no_grad():
        for step, t in enumerate(ddim.timesteps.tolist()):
            a = float(ddim.alphas_cumprod[t])
            b = float(ddim.alphas_cumprod[t - 250]) if t >= 250 else 1.0
            names = ("cond", "uncond") if branch == "both" else (branch,)
            plain, edited = guided(t, {}), guided(t, {name: 2.0 for name in names} if step else {})
            clean = a**0.5 * x - (1 - a) ** 0.5 * edited
            x = b**0.5 * clean + (1 - b) ** 0.5 * (a**0.5 * plain + (1 - a) ** 0.5 * x)
        decoded = pipeline.vae.decode(x / pipeline.vae.config.scaling_factor).sample
    return (decoded / 2 + 0.5).clamp(0, 1)


def test_a_micro_batch_without_a_target_pays_nothing(tiny: DiffusionModel) -> None:
    rows: list[int] = []
    handle = tiny.unet.conv_out.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    edit = Shift(1.0)
    made = images(tiny, plan([0, 1, 2, 3], [UNTOUCHED, UNTOUCHED, 0, UNTOUCHED]), method=edit)
    handle.remove()
    assert rows == [4, 4, 4, 4, 4, 6, 6, 6]  # the first step lies outside the window
    assert torch.equal(made[0], images(tiny, plan([0, 1]))[0])


def test_recording_beside_an_edit_sees_the_unedited_rows_of_its_own_branch(tiny: DiffusionModel) -> None:
    site = Site("up_blocks.0.attentions.0", branch="uncond")
    edit = Shift(2.0, site=Site("up_blocks.0.attentions.1", branch="cond"))
    (batch,) = tiny.sample(plan([0, 1], [0, 0]), record=site, method=edit)
    (plain,) = tiny.sample(plan([0, 1]), record=site)
    assert batch.activations is not None and plain.activations is not None
    assert torch.equal(batch.activations[:, :2], plain.activations[:, :2])  # the first edited step changes the next


class SeparateForwards(StableDiffusionPipeline):
    """Guides with a U-Net call per branch, the conditional one first."""

    @torch.no_grad()
    def __call__(self, prompt: list[str], *, latents: Tensor, num_inference_steps: int, **settings: Any) -> Any:
        self._guidance_scale = settings["guidance_scale"]
        cond, uncond = self.encode_prompt(prompt, latents.device, 1, True)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            c = self.unet(latents, t, encoder_hidden_states=cond, return_dict=False)[0]
            u = self.unet(latents, t, encoder_hidden_states=uncond, return_dict=False)[0]
            guided = u + self._guidance_scale * (c - u)
            latents = self.scheduler.step(guided, t, latents, return_dict=False)[0]
        made = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return type("Made", (), {"images": (made / 2 + 0.5).clamp(0, 1)})()


@pytest.mark.parametrize("branch", ["cond", "uncond"])
@pytest.mark.parametrize("update", ["symmetric", "asymmetric"])
def test_branches_called_one_by_one_are_told_by_the_declared_order(
    tiny: DiffusionModel, branch: str, update: str
) -> None:
    separate = tiny_text_to_image(tiny_pipeline(SeparateForwards), calls=["cond", "uncond"])
    site = Site("mid_block", branch=branch)
    for amount in (0.0, 2.0):
        made = images(separate, plan([0, 1], [0, 0]), method=Shift(amount, update, site))
        expected = images(tiny, plan([0, 1], [0, 0]), method=Shift(amount, update, site))
        torch.testing.assert_close(made[1], expected[1], rtol=0, atol=1e-5)
    (batch,), (whole,) = separate.sample(plan([0, 1]), record=site), tiny.sample(plan([0, 1]), record=site)
    torch.testing.assert_close(batch.activations, whole.activations, rtol=0, atol=2e-3)


def test_calls_that_were_not_declared_are_noticed() -> None:
    undeclared = tiny_text_to_image(tiny_pipeline(SeparateForwards))
    with pytest.raises(ValueError, match=r"2 rows where 4 were expected; .*model\.calls"):
        images(undeclared, plan([0, 1]), record=MIDDLE)
    assert hook_free(undeclared)
    with pytest.raises(ValueError, match="once per branch"):
        tiny_text_to_image(calls=["uncond", "cond"]).site_shape(Site("mid_block", branch="both"))
    with pytest.raises(ValueError, match=r"model\.calls must be one of"):
        tiny_text_to_image(calls=["cond", "cond"])


def test_symmetric_edits_work_with_any_scheduler_asymmetric_ones_with_ddim() -> None:
    pipeline = tiny_pipeline()
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    model = tiny_text_to_image(pipeline)
    plain = images(model, plan([0, 1]))
    assert torch.equal(images(model, plan([0, 1], [0, 0]), method=Shift(0.0, "symmetric"))[0], plain[0])
    assert (images(model, plan([0, 1], [0, 0]), method=Shift(2.0, "symmetric"))[0] - plain[0]).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"needs the DDIM scheduler, .*EulerDiscreteScheduler"):
        images(model, plan([0, 1], [0, 0]), method=Shift(2.0))


def test_hooks_and_scheduler_are_restored_after_an_exception(tiny: DiffusionModel) -> None:
    def fail(_: Tensor) -> Tensor:
        raise KeyError

    plain = images(tiny, plan([0, 1]))
    with pytest.raises(KeyError):
        images(tiny, plan([0, 1], [0, 0]), method=Shift(fail))
    assert hook_free(tiny) and type(tiny.pipeline.scheduler) is DDIMScheduler
    assert torch.equal(images(tiny, plan([0, 1]))[0], plain[0])
