import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from tiny_pipeline import MIDDLE, TEXTS, Shift, hook_free, images, plan, tiny_pipeline, tiny_text_to_image
from torch import Tensor

from difflens.models.model import DiffusionModel
from difflens.models.random_pipeline import byte_tokenizer
from difflens.models.sampling import image_generator, normal
from difflens.vocabulary import UNTOUCHED, GenerationPlan, Site


@pytest.fixture(scope="module")
def tiny() -> DiffusionModel:
    return tiny_text_to_image()


def test_it_is_the_pipelines_own_call_on_noise_that_belongs_to_the_image(tiny: DiffusionModel) -> None:
    generators = [image_generator(3, i) for i in (4, 5)]
    latents = normal(generators, (4, 8, 8), device=torch.device("cpu"))
    called = tiny.pipeline(
        [TEXTS[0], TEXTS[1]], num_inference_steps=4, guidance_scale=3.0, latents=latents, output_type="pt"
    )
    assert torch.equal(torch.stack(list(images(tiny, plan([4, 5])).values())), called.images)


def test_an_image_depends_on_its_id_and_prompt_alone(tiny: DiffusionModel) -> None:
    several = images(tiny, plan([5, 1, 9, 4, 7]))
    for ids in ([9], [4, 9, 1], [7, 8, 1, 5]):
        for image_id, image in images(tiny, plan(ids)).items():
            if image_id in several:
                assert torch.equal(image, several[image_id])
    other = images(tiny, plan([9], prompts=("something else",)))
    assert not torch.equal(other[9], several[9])


def test_eta_draws_from_the_images_own_stream() -> None:
    model = tiny_text_to_image(eta=1.0)
    several = images(model, plan([3, 1, 2]))
    assert torch.equal(images(model, plan([8, 3]))[3], several[3])
    edit = Shift(0.0)
    assert torch.equal(images(model, plan([3, 1], [0, 0]), method=edit)[3], several[3])
    assert not torch.equal(images(tiny_text_to_image(), plan([3]))[3], several[3])


def test_recorded_branches_are_the_halves_of_the_guided_batch(tiny: DiffusionModel) -> None:
    halves: list[Tensor] = []
    handle = tiny.unet.mid_block.register_forward_hook(lambda _, __, h: halves.append(h.half()))
    (batch,) = tiny.sample(plan([0, 1]), record=MIDDLE)
    handle.remove()
    uncond, cond = torch.stack(halves, 1).chunk(2)
    assert batch.activations is not None and torch.equal(batch.activations, cond)
    for branch, expected in (("uncond", uncond), ("both", torch.cat([uncond, cond], dim=3))):
        (batch,) = tiny.sample(plan([0, 1]), record=Site("mid_block", branch=branch))
        assert batch.activations is not None and torch.equal(batch.activations, expected)
        assert batch.activations.shape == (2, 4, *tiny.site_shape(Site("mid_block", branch=branch)))


def test_without_guidance_there_is_one_branch() -> None:
    model = tiny_text_to_image(guidance=1.0)
    assert model.guidance.calls == ("cond",)
    plain = images(model, plan([0, 1]))
    assert torch.equal(images(model, plan([0, 1], [0, 0]), method=Shift(0.0))[0], plain[0])
    assert (images(model, plan([0, 1], [0, 0]), method=Shift(2.0))[0] - plain[0]).abs().max() > 1e-3
    for branch in ("uncond", "both"):
        with pytest.raises(ValueError, match="only the branch cond"):
            model.site_shape(Site("mid_block", branch=branch))
    with pytest.raises(ValueError, match="must be cond, uncond or both, got 'none'"):
        model.site_shape(Site("mid_block"))


def test_a_scheduler_that_repeats_a_timestep_is_refused() -> None:
    pipeline = tiny_pipeline()
    pipeline.scheduler = PNDMScheduler(skip_prk_steps=True, steps_offset=1)
    with pytest.raises(ValueError, match=r"PNDMScheduler visits timestep .* twice"):
        tiny_text_to_image(pipeline)


def test_a_pipeline_that_skips_steps_is_noticed(tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "_asked", 2)
    with pytest.raises(RuntimeError, match="2 times in 4 steps"):
        images(tiny, plan([0, 1]), record=MIDDLE)


def test_bf16_runs_the_unet_alone_under_autocast_and_stays_near() -> None:
    half = tiny_text_to_image(precision="bf16")
    plain, exact = images(half, plan([0, 1])), images(tiny_text_to_image(), plan([0, 1]))
    assert 0 < (plain[0] - exact[0]).abs().max() < 0.05
    assert torch.equal(images(half, plan([0, 1], [0, 0]), method=Shift(0.0))[0], plain[0])
    edit = Shift(lambda h: torch.where(h == h.max(), h + h.abs() * 2**-8, h))
    near = images(half, plan([0, 1], [0, 0]), method=edit)
    torch.testing.assert_close(near[0], plain[0], rtol=0, atol=2e-3)
    assert hook_free(half) and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("branch", ["cond", "uncond", "both"])
def test_the_denoising_loss_is_that_of_the_branch(tiny: DiffusionModel, branch: str) -> None:
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    site = Site("mid_block", branch=branch)

    def loss(change: Callable[[Tensor], Tensor] | None = None, prompts: tuple[str, ...] = TEXTS) -> float:
        return tiny.denoising_loss(pictures, 2, site=site, change=change, prompts=prompts)

    assert loss(lambda h: h) == loss() != loss(lambda h: h * 0)
    assert (loss(prompts=TEXTS[::-1]) == loss()) == (branch == "uncond")
    assert hook_free(tiny) and type(tiny.pipeline.scheduler) is DDIMScheduler
    with pytest.raises(ValueError, match="needs their prompts"):
        tiny.denoising_loss(pictures, 2, site=site)


def test_the_denoising_loss_agrees_with_the_training_loss(tiny: DiffusionModel) -> None:
    pipeline, t = tiny.pipeline, tiny.timesteps[1]
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    clean = pipeline.vae.encode(pictures * 2 - 1).latent_dist.mean * pipeline.vae.config.scaling_factor
    noise = normal([image_generator(5, i) for i in range(2)], (4, 8, 8), device=torch.device("cpu"))
    noisy = pipeline.scheduler.add_noise(clean, noise, torch.tensor([t]))
    text, _ = pipeline.encode_prompt(list(TEXTS), torch.device("cpu"), 1, True)
    v = pipeline.unet(noisy, t, encoder_hidden_states=text).sample
    # A v-prediction tells ε = √ᾱ v + √(1−ᾱ) x, so that its error is ᾱ times the error in v.
    alpha = float(pipeline.scheduler.alphas_cumprod[t])
    expected = alpha * float((v - pipeline.scheduler.get_velocity(clean, noise, torch.tensor([t]))).square().mean())
    assert tiny.denoising_loss(pictures, 1, site=MIDDLE, prompts=TEXTS, seed=5) == pytest.approx(expected, rel=1e-4)


def test_the_spec_tells_models_apart() -> None:
    specs = [tiny_text_to_image(**settings).spec() for settings in ({}, {"guidance": 2.0}, {"negative_prompt": "no"})]
    specs += [tiny_text_to_image(height=32).spec(), tiny_text_to_image(tiny_pipeline(beta_end=0.03)).spec()]
    changed = tiny_text_to_image()
    with torch.no_grad():
        next(changed.pipeline.text_encoder.parameters()).add_(1e-3)
    vocabulary = tiny_text_to_image()
    vocabulary.pipeline.tokenizer = byte_tokenizer(pad_token="!", length=20)
    specs += [changed.spec(), vocabulary.spec()]
    assert all(one != other for i, one in enumerate(specs) for other in specs[:i])
    assert tiny_text_to_image().spec() == specs[0]


def test_a_negative_prompt_reaches_the_unconditional_branch_alone(tiny: DiffusionModel) -> None:
    negative = tiny_text_to_image(negative_prompt="blurred")
    for branch, same in (("cond", True), ("uncond", False)):
        site = Site("mid_block", branch=branch)
        (one,), (other,) = negative.sample(plan([0, 1]), record=site), tiny.sample(plan([0, 1]), record=site)
        assert one.activations is not None and other.activations is not None
        assert torch.equal(one.activations[:, 0], other.activations[:, 0]) == same


def test_a_prompt_too_long_is_named_once_with_the_part_left_out(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_text_to_image()
    long = "a" * 22 + "bcd"
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            images(model, plan([0, 1], prompts=("a face", long)))
    said = [record.getMessage() for record in caplog.records if "never sees" in record.getMessage()]
    assert len(said) == 1 and said[0].endswith("it never sees 'bcd'") and long in said[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"micro_batch": 0}, "model.micro_batch"),
        ({"steps": 0}, "model.steps"),
        ({"height": 12}, "multiples of 8"),
        ({"precision": "fp16"}, "needs a GPU"),
        ({"precision": "int8"}, "model.precision must be one of"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_text_to_image(**settings)


def test_plans_are_checked(tiny: DiffusionModel) -> None:
    with pytest.raises(ValueError, match=r"plan\.prompts"):
        next(tiny.sample(GenerationPlan(0, torch.arange(2))))
    with pytest.raises(ValueError, match=r"plan\.targets"):
        next(tiny.sample(plan([0, 1]), method=Shift(1.0)))
    with pytest.raises(ValueError, match="2 images needs as many prompts, got 1"):
        GenerationPlan(0, torch.arange(2), None, ("one",))
    part = plan([4, 5, 6], [0, UNTOUCHED, 1]).part(1, 3)
    assert (part.image_ids.tolist(), part.targets.tolist()) == ([5, 6], [UNTOUCHED, 1])  # type: ignore[union-attr]
    assert part.prompts == (TEXTS[1], TEXTS[0]) and plan([4, 5]).part(1, 2).targets is None
