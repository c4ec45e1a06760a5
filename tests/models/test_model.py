"""One class around every pipeline: images that depend on their own id, hidden states read, edits made and undone."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline
from tiny_pipeline import (
    MIDDLE,
    TEXTS,
    Shift,
    hook_free,
    images,
    plan,
    tiny_pipeline,
    tiny_text_to_image,
    tiny_unconditional,
    tiny_unet,
)
from torch import Tensor

from difflens.data.prompts import check_prompts
from difflens.models.base import Batch
from difflens.models.model import DiffusionModel, UnconditionalPipeline, cut_off
from difflens.models.random_pipeline import byte_tokenizer
from difflens.models.sampling import image_generator, normal
from difflens.vocabulary import UNTOUCHED, GenerationPlan, Site

CPU = torch.device("cpu")
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
    Site("up_blocks.0.attentions.0.transformer_blocks.0.attn1", branch="cond"),
    Site("down_blocks.1.attentions.0.transformer_blocks.0", "update", branch="both"),
]
MAKERS = {"unconditional": tiny_unconditional, "text": tiny_text_to_image}


@pytest.fixture(scope="module")
def tiny() -> DiffusionModel:
    return tiny_text_to_image()


@pytest.fixture(scope="module")
def untouched() -> dict[str, tuple[DiffusionModel, dict[int, Tensor]]]:
    """Models of both kinds, and their first two images."""
    made = {kind: maker(micro_batch=2) for kind, maker in MAKERS.items()}
    return {kind: (model, images(model, plan([0, 1]))) for kind, model in made.items()}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[..., DiffusionModel]:
    return MAKERS[request.param]


def middle(model: DiffusionModel) -> Site:
    return Site(branch=model.default_branch)


def loss(model: DiffusionModel, change: Callable[[Tensor], Tensor] | None = None, **settings: Any) -> float:
    size = 16 if model.prompted else 8
    pictures = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    usual = {"site": middle(model), "prompts": TEXTS if model.prompted else None}
    return float(model.denoising_loss(pictures, 2, change=change, **{**usual, **settings}).mean())


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_depends_on_its_id_and_prompt_alone(make: Callable[..., DiffusionModel], eta: float) -> None:
    model = make(eta=eta)
    several = images(model, plan([5, 1, 9, 4, 7]))
    for ids in ([9], [4, 9, 1], [7, 8, 1, 5]):
        for image_id, image in images(model, plan(ids)).items():
            assert image_id not in several or torch.equal(image, several[image_id])
    smaller = copy(model)
    smaller.micro_batch = 1
    torch.testing.assert_close(images(smaller, plan([9]))[9], several[9], rtol=0, atol=1e-5)
    assert not torch.equal(images(make(), plan([9]))[9], several[9]) or not eta
    assert torch.equal(images(model, plan([9], prompts=("else",)))[9], several[9]) != model.prompted


def test_streams_of_neighbouring_seeds_and_ids_differ() -> None:
    pairs = ((0, 1), (1, 0), (1, 1), (10, 1), (1, 1))
    draws = [torch.randn(4, generator=image_generator(seed, i)) for seed, i in pairs]
    assert len({tuple(draw.tolist()) for draw in draws}) == 4


def test_it_is_the_pipelines_own_call_on_noise_that_belongs_to_the_image(tiny: DiffusionModel) -> None:
    latents = normal([image_generator(3, i) for i in (4, 5)], (4, 8, 8), device=CPU)
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "pt"}
    called = tiny.pipeline(list(TEXTS), latents=latents, **settings)
    assert torch.equal(torch.stack(list(images(tiny, plan([4, 5])).values())), called.images)


def test_recorded_activations_are_those_of_every_step_and_of_the_branch(tiny: DiffusionModel) -> None:
    first, last = tiny_unconditional().sample(GenerationPlan(0, torch.arange(6)), record=Site())
    assert first.activations is not None and last.activations is not None
    assert (first.activations.shape, last.activations.shape) == ((4, 5, 16, 4, 4), (2, 5, 16, 4, 4))
    halves: list[Tensor] = []
    handle = tiny.unet.mid_block.register_forward_hook(lambda _, __, h: halves.append(h.half()))
    (batch,) = tiny.sample(plan([0, 1]), record=MIDDLE)
    handle.remove()
    uncond, cond = torch.stack(halves, 1).chunk(2)
    assert batch.activations is not None and torch.equal(batch.activations, cond)
    for branch, expected in (("uncond", uncond), ("both", torch.cat([uncond, cond], dim=3))):
        site = Site("mid_block", branch=branch)
        (batch,) = tiny.sample(plan([0, 1]), record=site)
        assert batch.activations is not None and torch.equal(batch.activations, expected)
        assert batch.activations.shape == (2, 4, *tiny.site_shape(site))


def test_tokens_of_a_transformer_block_are_met_as_a_map(tiny: DiffusionModel) -> None:
    site, tokens = SITES[-2], []
    handle = tiny.unet.get_submodule(site.module).register_forward_hook(lambda _, __, h: tokens.append(h))
    (batch,) = tiny.sample(plan([0, 1]), record=site)
    handle.remove()
    assert tokens[0].shape == (4, 16, 16) and tiny.site_shape(site) == (16, 4, 4)
    assert batch.activations is not None
    assert torch.equal(batch.activations[1, 0, :, 2, 3], tokens[0][3, 2 * 4 + 3].half())


def test_without_guidance_there_is_one_branch() -> None:
    model = tiny_text_to_image(guidance=1.0)
    assert model.guidance.calls == ("cond",)
    plain = images(model, plan([0, 1]))
    assert torch.equal(images(model, plan([0, 1], [0, 0]), method=Shift(0.0))[0], plain[0])
    assert (images(model, plan([0, 1], [0, 0]), method=Shift(2.0))[0] - plain[0]).abs().max() > 1e-3
    for branch, message in (
        ("uncond", "only the branch cond"),
        ("both", "only the branch cond"),
        ("none", "got 'none'"),
    ):
        with pytest.raises(ValueError, match=message):
            model.site_shape(Site("mid_block", branch=branch))


@pytest.mark.parametrize("site", [Site(), *SITES], ids=str)
@pytest.mark.parametrize("update", ["symmetric", "asymmetric"])
def test_a_neutral_edit_changes_no_bit_and_a_real_one_the_touched_image_alone(
    untouched: dict[str, tuple[DiffusionModel, dict[int, Tensor]]], site: Site, update: str
) -> None:
    model, plain = untouched["unconditional" if site.branch == "none" else "text"]
    for image_id, image in images(model, plan([0, 1], [0, 0]), method=Shift(0.0, update, site)).items():
        assert torch.equal(image, plain[image_id])
    edit = Shift(3.0, update, site)
    made = images(model, plan([0, 1], [UNTOUCHED, 0]), method=edit)
    torch.testing.assert_close(made[0], plain[0], rtol=0, atol=1e-5)
    assert (made[1] - plain[1]).abs().max() > 1e-3
    assert edit.steps == list(range(1, model.steps))
    assert set(edit.shapes) == {(2, *model.site_shape(site))}
    assert hook_free(model) and isinstance(model.pipeline.scheduler, DDIMScheduler)
    # The smallest change there is: it takes the edited path, to estimates that are equal but for rounding.
    nearly = Shift(lambda h: torch.nextafter(h, torch.tensor(torch.inf)), update, site)
    for image_id, image in images(model, plan([0, 1], [0, 0]), method=nearly).items():
        torch.testing.assert_close(image, plain[image_id], rtol=0, atol=1e-5)


@pytest.mark.parametrize("branch", ["cond", "uncond", "both"])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_the_asymmetric_step_is_two_guided_passes_and_one_update(branch: str, rescale: float) -> None:
    model = tiny_text_to_image(guidance_rescale=rescale)
    made = images(model, plan([0, 1], [0, 0]), method=Shift(2.0, site=Site("mid_block", branch=branch)))
    expected = reference(model, branch, rescale)
    for image_id in (0, 1):
        torch.testing.assert_close(made[image_id], expected[image_id], rtol=0, atol=1e-5)


def reference(model: DiffusionModel, branch: str, rescale: float) -> Tensor:
    """The asymmetric sampler written out: every U-Net pass by itself, v-prediction, guidance, rescaling, DDIM."""
    pipeline, unet, ddim = model.pipeline, model.pipeline.unet, model.pipeline.scheduler
    ddim.set_timesteps(4)
    x = normal([image_generator(3, i) for i in (0, 1)], (4, 8, 8), device=CPU)
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


@pytest.mark.parametrize(("update", "grown"), [("asymmetric", 1), ("symmetric", 0)])
def test_a_micro_batch_without_a_target_pays_nothing(
    make: Callable[..., DiffusionModel], update: str, grown: int
) -> None:
    model, rows = make(micro_batch=2), []
    model.unet.conv_out.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    edit = Shift(1.0, update, middle(model))
    made = images(model, plan([0, 1, 2, 3], [UNTOUCHED, UNTOUCHED, 0, UNTOUCHED]), method=edit)
    usual, steps = (4 if model.prompted else 2), model.steps
    # The first step lies outside the window.
    assert rows == [usual] * (steps + 1) + [usual + 2 * grown] * (steps - 1)
    assert torch.equal(made[0], images(model, plan([0, 1]))[0])


def test_recording_beside_an_edit_sees_the_unedited_rows_of_its_own_branch(tiny: DiffusionModel) -> None:
    site = Site("up_blocks.0.attentions.0", branch="uncond")
    edit = Shift(2.0, site=Site("up_blocks.0.attentions.1", branch="cond"))
    (batch,) = tiny.sample(plan([0, 1], [0, 0]), record=site, method=edit)
    (plain,) = tiny.sample(plan([0, 1]), record=site)
    assert batch.activations is not None and plain.activations is not None
    assert torch.equal(batch.activations[:, :2], plain.activations[:, :2])  # the first edited step changes the next


class Everything:
    """A method that changes prompts, noise, settings, and the activations of two sites."""

    @contextmanager
    def attach(self, model: DiffusionModel, batch: Batch) -> Iterator[None]:
        self.seen = (batch.images.target.tolist(), batch.prompts)
        batch.prompts = list(TEXTS[:1]) * len(batch.latents)
        batch.latents = torch.zeros_like(batch.latents)
        batch.settings["guidance_scale"] = 5.0
        sites = (MIDDLE, Site("up_blocks.1", branch="both"))
        edits = [model.editing(Shift(1.0, "symmetric", site), batch.images) for site in sites]
        with edits[0], edits[1]:
            yield


def test_a_method_changes_a_call_in_whatever_way_and_leaves_nothing_behind(tiny: DiffusionModel) -> None:
    plain, method = images(tiny, plan([7])), Everything()
    made = images(tiny, plan([7, 8, 9], [0, 0, 1]), method=method)
    assert method.seen == ([1, 1], [TEXTS[1]] * 2), "the last micro-batch, padded"
    torch.testing.assert_close(made[7], made[8], rtol=0, atol=1e-6)
    assert (made[7] - plain[7]).abs().max() > 1e-3
    assert torch.equal(images(tiny, plan([7]))[7], plain[7]) and hook_free(tiny)


def test_two_asymmetric_edits_at_once_are_refused(tiny: DiffusionModel) -> None:
    known = plan([0, 1], [0, 0]).per_image()
    with (
        pytest.raises(ValueError, match="another asymmetric edit"),
        tiny.editing(Shift(1.0), known),
        tiny.editing(Shift(1.0), known),
    ):
        pass
    assert hook_free(tiny) and type(tiny.pipeline.scheduler) is DDIMScheduler


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
        made, expected = (
            images(model, plan([0, 1], [0, 0]), method=Shift(amount, update, site)) for model in (separate, tiny)
        )
        torch.testing.assert_close(made[1], expected[1], rtol=0, atol=1e-5)
    (batch,), (whole,) = separate.sample(plan([0, 1]), record=site), tiny.sample(plan([0, 1]), record=site)
    torch.testing.assert_close(batch.activations, whole.activations, rtol=0, atol=2e-3)


def test_calls_that_were_not_declared_are_noticed(tiny: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    undeclared = tiny_text_to_image(tiny_pipeline(SeparateForwards))
    with pytest.raises(ValueError, match=r"2 rows where 4 were expected; .*model\.calls"):
        images(undeclared, plan([0, 1]), record=MIDDLE)
    assert hook_free(undeclared)
    with pytest.raises(ValueError, match="once per branch"):
        tiny_text_to_image(calls=["uncond", "cond"]).site_shape(Site("mid_block", branch="both"))
    monkeypatch.setattr(tiny, "_asked", 2)
    with pytest.raises(RuntimeError, match="2 times in 4 steps"):
        images(tiny, plan([0, 1]), record=MIDDLE)


def test_symmetric_edits_work_with_any_scheduler_asymmetric_ones_with_ddim() -> None:
    pipeline = tiny_pipeline()
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    model = tiny_text_to_image(pipeline)
    plain = images(model, plan([0, 1]))
    assert torch.equal(images(model, plan([0, 1], [0, 0]), method=Shift(0.0, "symmetric"))[0], plain[0])
    assert (images(model, plan([0, 1], [0, 0]), method=Shift(2.0, "symmetric"))[0] - plain[0]).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"needs the DDIM scheduler, .*EulerDiscreteScheduler"):
        images(model, plan([0, 1], [0, 0]), method=Shift(2.0))


@pytest.mark.parametrize("update", ["symmetric", "asymmetric"])
def test_hooks_and_scheduler_are_restored_after_an_exception(make: Callable[..., DiffusionModel], update: str) -> None:
    def fail(_: Tensor) -> Tensor:
        raise KeyError

    model = make()
    plain, scheduler = images(model, plan([0, 1])), model.pipeline.scheduler
    with pytest.raises(KeyError):
        images(model, plan([0, 1], [0, 0]), method=Shift(fail, update, middle(model)))
    assert hook_free(model) and model.pipeline.scheduler is scheduler
    assert torch.equal(images(model, plan([0, 1]))[0], plain[0])


def test_bf16_runs_the_unet_alone_under_autocast_and_stays_near(make: Callable[..., DiffusionModel]) -> None:
    half = make(precision="bf16", micro_batch=2)
    plain, exact = images(half, plan([0, 1])), images(make(micro_batch=2), plan([0, 1]))
    assert 0 < (plain[0] - exact[0]).abs().max() < 0.1
    site = middle(half)
    assert torch.equal(images(half, plan([0, 1], [0, 0]), method=Shift(0.0, site=site))[0], plain[0])
    edit = Shift(lambda h: torch.where(h == h.max(), h + h.abs() * 2**-8, h), site=site)
    torch.testing.assert_close(
        images(half, plan([0, 1], [0, 0]), method=edit)[0], plain[0], rtol=0, atol=2e-3 if half.prompted else 2e-2
    )
    assert hook_free(half) and not torch.is_autocast_enabled("cpu")


def test_an_edit_computes_in_float32_whatever_the_denoiser_runs_in(make: Callable[..., DiffusionModel]) -> None:
    model = make(precision="bf16")

    def edit(h: Tensor) -> Tensor:
        assert (h.float().flatten(1) @ h.float().flatten(1).T).dtype == torch.float32
        return h + 1

    images(model, plan([0, 1], [0, 0]), method=Shift(edit, site=middle(model)))


def test_the_denoising_loss_changes_with_the_site_and_leaves_nothing_behind(
    make: Callable[..., DiffusionModel],
) -> None:
    model = make()
    assert loss(model, lambda h: h) == loss(model) != loss(model, lambda h: h * 0)
    assert hook_free(model) and isinstance(model.pipeline.scheduler, DDIMScheduler)


@pytest.mark.parametrize("branch", ["cond", "uncond", "both"])
def test_the_denoising_loss_is_that_of_the_branch(tiny: DiffusionModel, branch: str) -> None:
    site = Site("mid_block", branch=branch)
    assert loss(tiny, lambda h: h, site=site) == loss(tiny, site=site) != loss(tiny, lambda h: h * 0, site=site)
    assert (loss(tiny, site=site, prompts=TEXTS[::-1]) == loss(tiny, site=site)) == (branch == "uncond")
    with pytest.raises(ValueError, match="needs their prompts"):
        loss(tiny, prompts=None)


def test_the_denoising_loss_agrees_with_the_training_loss(tiny: DiffusionModel) -> None:
    pipeline, t = tiny.pipeline, tiny.timesteps[1]
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    clean = pipeline.vae.encode(pictures * 2 - 1).latent_dist.mean * pipeline.vae.config.scaling_factor
    noise = normal([image_generator(5, i) for i in range(2)], (4, 8, 8), device=CPU)
    noisy = pipeline.scheduler.add_noise(clean, noise, torch.tensor([t]))
    text, _ = pipeline.encode_prompt(list(TEXTS), CPU, 1, True)
    v = pipeline.unet(noisy, t, encoder_hidden_states=text).sample
    # A v-prediction tells ε = √ᾱ v + √(1−ᾱ) x, so that its error is ᾱ times the error in v.
    alpha = float(pipeline.scheduler.alphas_cumprod[t])
    expected = alpha * float((v - pipeline.scheduler.get_velocity(clean, noise, torch.tensor([t]))).square().mean())
    found = tiny.denoising_loss(pictures, 1, site=MIDDLE, prompts=TEXTS, seed=5)
    assert found.shape == (2,) and float(found.mean()) == pytest.approx(expected, rel=1e-4)


def test_the_spec_tells_models_apart() -> None:
    settings = ({}, {"guidance": 2.0}, {"negative_prompt": "no"}, {"height": 32}, {"eta": 1.0})
    specs = [tiny_text_to_image(**each).spec() for each in settings]
    changed, vocabulary, pixels = tiny_text_to_image(), tiny_text_to_image(), tiny_unconditional()
    with torch.no_grad():
        next(changed.pipeline.text_encoder.parameters()).add_(1e-3)
        next(pixels.unet.parameters()).add_(1e-3)
    vocabulary.pipeline.tokenizer = byte_tokenizer(pad_token="!", length=20)
    models = [changed, vocabulary, pixels, tiny_unconditional(), tiny_unconditional(rederive_direction=True)]
    specs += [each.spec() for each in (*models, tiny_text_to_image(tiny_pipeline(beta_end=0.03)))]
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
    model, long = tiny_text_to_image(), "a" * 22 + "bcd"
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            images(model, plan([0, 1], prompts=("a face", long)))
    said = [record.getMessage() for record in caplog.records if "never sees" in record.getMessage()]
    assert len(said) == 1 and said[0].endswith("it never sees 'bcd'") and long in said[0]
    tokenizer = byte_tokenizer(pad_token="!", length=10)
    assert [cut_off(text, tokenizer) for text in ("eightabc", "eightabcde")] == ["", "de"]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("text", {"micro_batch": 0}, "model.micro_batch"),
        ("text", {"steps": 0}, "model.steps"),
        ("unconditional", {"steps": 1001}, "model.steps must be 1 to 1000"),
        ("text", {"height": 12}, "multiples of 8"),
        ("text", {"precision": "fp16"}, "needs a GPU"),
        ("unconditional", {"precision": "fp16"}, "model.precision must be one of auto, fp32, bf16"),
        ("text", {"precision": "int8"}, "model.precision must be one of"),
        ("text", {"calls": ["cond", "cond"]}, "model.calls must be one of"),
        ("text", {"rederive_direction": True}, "a text-to-image model knows no model.rederive_direction"),
        ("unconditional", {"guidance": 2.0}, "an unconditional model knows no model.guidance"),
    ],
)
def test_settings_out_of_range_are_refused(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MAKERS[kind](**settings)


def test_pipelines_that_cannot_be_studied_are_refused() -> None:
    pipeline = tiny_pipeline()
    pipeline.scheduler = PNDMScheduler(skip_prk_steps=True, steps_offset=1)
    with pytest.raises(ValueError, match=r"PNDMScheduler visits timestep .* twice"):
        tiny_text_to_image(pipeline)
    pipeline.scheduler = EulerDiscreteScheduler()
    with pytest.raises(ValueError, match=r"model\.eta 1\.0 needs model\.scheduler=ddim"):
        tiny_text_to_image(pipeline, eta=1.0)
    thresholding = UnconditionalPipeline(tiny_unet(), DDIMScheduler(thresholding=True))
    with pytest.raises(ValueError, match="dynamic thresholding"):
        DiffusionModel(thresholding, name="x", steps=5, micro_batch=2)
    pipeline.unet = None
    with pytest.raises(ValueError, match="StableDiffusionPipeline has no U-Net"):
        tiny_text_to_image(pipeline)


def test_plans_are_checked(tiny: DiffusionModel) -> None:
    with pytest.raises(ValueError, match=r"plan\.prompts"):
        next(tiny.sample(GenerationPlan(0, torch.arange(2))))
    with pytest.raises(ValueError, match=r"plan\.targets"):
        next(tiny.sample(plan([0, 1]), method=Shift(1.0)))


def test_a_list_of_prompts_holds_texts_alone() -> None:
    with pytest.raises(ValueError, match="texts only, got 3"):
        check_prompts(["a face", 3])
