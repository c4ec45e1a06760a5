"""A user's own pipeline, changed from outside, gives what the models of this package give, or says by name why it cannot."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDIMParallelScheduler,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny_pipeline import TEXTS, Shift, plan, tiny_pipeline, tiny_text_to_image, tiny_unconditional
from torch import Tensor, nn

from difflens.models.base import Batch
from difflens.models.model import DiffusionModel
from difflens.models.sampling import image_generator, normal
from difflens.models.steered import edited_pipeline
from difflens.vocabulary import GenerationPlan, Site

TARGETS = torch.tensor([0, -1, 1, 0])
LATENTS = normal([image_generator(3, i) for i in (0, 1)], (4, 8, 8), device=torch.device("cpu"))
GRID = tiny_text_to_image().timesteps
USUAL: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "pt"}


def towards(*targets: int) -> Callable[[int], Tensor]:
    return lambda n: torch.tensor(targets)


def zeros(n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.int64)


@contextmanager
def steering(pipe: Any, edit: Any, assign: Callable[[int], Tensor] = zeros, grid: Any = None) -> Iterator[None]:
    own = (pipe.unet, pipe.scheduler)
    with edited_pipeline(pipe, edit, timesteps=grid or GRID, assign=assign):
        yield
    assert (pipe.unet, pipe.scheduler) == own and "set_timesteps" not in vars(pipe.scheduler)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipe.unet.modules())


def call(pipe: Any, prompts: Any = TEXTS, **settings: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(list(prompts), **{**USUAL, "latents": LATENTS, **settings}).images


def expected(edit: Shift, *targets: int, **settings: Any) -> Tensor:
    (made,) = tiny_text_to_image(**settings).sample(plan([0, 1], list(targets)), method=edit)
    return made.images


@pytest.mark.parametrize("update", ["asymmetric", "symmetric"])
def test_an_unconditional_pipeline_is_edited_as_the_model_is(update: str) -> None:
    model, edit, rows = tiny_unconditional(), Shift(1.5, update, Site()), []
    (wanted,) = model.sample(GenerationPlan(3, torch.arange(4), TARGETS), method=edit)
    pipe = DDIMPipeline(model.unet, model.pipeline.scheduler)
    pipe.set_progress_bar_config(disable=True)

    def make() -> Tensor:
        generators = [image_generator(3, image_id) for image_id in range(4)]
        return pipe(4, generators, num_inference_steps=5, output_type="pt").images

    plain, asked = make(), []
    with steering(pipe, edit, lambda n: asked.append(n) or TARGETS, model.timesteps):
        torch.testing.assert_close(make(), wanted.images, rtol=0, atol=1e-5)
        make()
    assert asked == [4, 4], "the images of every call get their classes anew"
    assert torch.equal(make(), plain) and not torch.allclose(plain, wanted.images, atol=1e-3)
    counter = model.unet.conv_out.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    for amount, target in ((0.0, 0), (1.5, -1)):
        with edited_pipeline(
            pipe,
            Shift(amount, update, Site()),
            timesteps=model.timesteps,
            assign=lambda n, t=target: torch.full((n,), t),
        ):
            assert torch.equal(make(), plain), "a neutral edit changes no bit"
    counter.remove()
    assert rows == [4] * 10


@pytest.mark.parametrize("update", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("branch", ["cond", "uncond", "both", "none"])
def test_a_guided_pipeline_is_edited_as_the_model_is(update: str, branch: str) -> None:
    site = Site("mid_block", branch="cond" if branch == "none" else branch)
    pipe = tiny_pipeline()
    with steering(pipe, Shift(2.0, update, Site("mid_block", branch=branch)), towards(0, -1)):
        torch.testing.assert_close(call(pipe), expected(Shift(2.0, update, site), 0, -1), rtol=0, atol=1e-5)


class Noting:
    """A method that is no edit of one site."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    @contextmanager
    def attach(self, model: DiffusionModel, batch: Batch) -> Iterator[None]:
        self.seen.append(batch.images.target.tolist())
        with model.editing(Shift(2.0), batch.images):
            yield


def several_per_prompt(pipe: Any) -> tuple[Tensor, Tensor]:
    with steering(pipe, Shift(2.0), towards(0, 0)):
        made = call(pipe, TEXTS[:1], num_images_per_prompt=2)
    (alone,) = tiny_text_to_image().sample(plan([0, 1], [0, 0], TEXTS[:1] * 2), method=Shift(2.0))
    return made, alone.images


def called_with(settings: dict[str, Any], **of_the_model: Any) -> Callable[[Any], tuple[Tensor, Tensor]]:
    """A call with other settings, and a model that has them from the start."""

    def case(pipe: Any) -> tuple[Tensor, Tensor]:
        with steering(pipe, Shift(2.0)):
            return call(pipe, **settings), expected(Shift(2.0), 0, 0, **of_the_model)

    return case


def callback(pipe: Any) -> tuple[Tensor, Tensor]:
    steps: list[int] = []

    def note(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        return given

    with steering(pipe, Shift(2.0)):
        made = call(pipe, callback_on_step_end=note)
    assert steps == [0, 1, 2, 3]
    return made, expected(Shift(2.0), 0, 0)


def guidance_switched_off_in_the_middle(pipe: Any) -> tuple[Tensor, Tensor]:
    def switch(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            pipe._guidance_scale = 0.0
            given["prompt_embeds"] = given["prompt_embeds"].chunk(2)[-1]
        return given

    settings = {"callback_on_step_end": switch, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    plain = call(pipe, **settings)
    with steering(pipe, Shift(0.0)):
        neutral = call(pipe, **settings)
    with steering(pipe, Shift(2.0)):
        assert (call(pipe, **settings) - plain).abs().max() > 1e-3
    return neutral, plain


def one_step(pipe: Any) -> tuple[Tensor, Tensor]:
    edit, asked = Shift(2.0), []
    edit.active = lambda step, steps: True  # type: ignore[method-assign]
    grid = tiny_text_to_image(steps=1).timesteps
    with steering(pipe, edit, lambda n: asked.append(n) or zeros(n), grid):
        made = [call(pipe, num_inference_steps=1) for _ in range(2)]
    assert asked == [2, 2]
    return made[1], expected(edit, 0, 0, steps=1)


def strength(pipe: Any) -> tuple[Tensor, Tensor]:
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    pipe, asked = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False), []
    settings = {"image": torch.rand(2, 3, 16, 16), "strength": 0.5}

    def make() -> Tensor:
        pipe.set_progress_bar_config(disable=True)
        return pipe(list(TEXTS), **USUAL, **settings, generator=torch.Generator().manual_seed(0)).images

    plain = make()
    with steering(pipe, Shift(2.0), lambda n: asked.append(n) or torch.tensor([0, -1])):
        made = [make(), make()]
    assert asked == [2, 2] and (made[0][0] - plain[0]).abs().max() > 1e-3 and torch.equal(*made)
    return made[0][1], plain[1]


def exception_inside(pipe: Any) -> tuple[Tensor, Tensor]:
    def interrupt(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        raise KeyError

    with steering(pipe, Shift(2.0)):
        with pytest.raises(KeyError):
            call(pipe, callback_on_step_end=interrupt)
        assert not pipe.unet.mid_block._forward_hooks
        return call(pipe), expected(Shift(2.0), 0, 0)


def another_size_in_the_next_call(pipe: Any) -> tuple[Tensor, Tensor]:
    with steering(pipe, Shift(2.0)):
        call(pipe, TEXTS[:1], latents=LATENTS[:1])
        return call(pipe), expected(Shift(2.0), 0, 0)


def a_method(pipe: Any) -> tuple[Tensor, Tensor]:
    method = Noting()
    with steering(pipe, method, towards(0, 1)):
        made = call(pipe)
    assert method.seen == [[0, 1]] * 4
    return made, expected(Shift(2.0), 0, 0)


def another_scheduler(pipe: Any) -> tuple[Tensor, Tensor]:
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    edit, model = Shift(2.0, "symmetric"), tiny_text_to_image(pipe)
    (wanted,) = model.sample(plan([0, 1], [0, 0]), method=edit)
    with steering(pipe, edit, grid=model.timesteps):
        return call(pipe), wanted.images


class LowRank(nn.Module):
    """What loading a LoRA puts in the place of a linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, generator = base, torch.Generator().manual_seed(0)
        self.change = nn.Parameter(torch.randn(base.weight.shape, generator=generator) * 0.1)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.base_layer(x) + x @ self.change.T


def lora(pipe: Any) -> tuple[Tensor, Tensor]:
    attention = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    attention.to_v = LowRank(attention.to_v)
    with steering(pipe, Shift(2.0)):
        made = call(pipe)
    (wanted,) = tiny_text_to_image(pipe).sample(plan([0, 1], [0, 0]), method=Shift(2.0))
    return made, wanted.images


def hooked(pipe: Any, make: Callable[[], Any], rows: slice) -> Any:
    """What a plain hook makes of a pipeline: the symmetric edit of every step but the first, without this package."""
    calls: list[None] = []

    def shift(_: Any, __: Any, h: Tensor) -> Tensor:
        calls.append(None)
        moved = h.clone()
        moved[rows] += 2.0
        return h if len(calls) == 1 else moved

    handle = pipe.unet.mid_block.register_forward_hook(shift)
    try:
        return make()
    finally:
        handle.remove()


def ddpm(_: Any) -> tuple[Any, Any]:
    pipe, scheduler = DDPMPipeline(tiny_unconditional().unet, DDPMScheduler()), DDPMScheduler()
    scheduler.set_timesteps(5)
    pipe.set_progress_bar_config(disable=True)

    def make() -> Tensor:
        made = pipe(3, torch.Generator().manual_seed(0), num_inference_steps=5, output_type="np").images
        return torch.from_numpy(made)

    with steering(pipe, Shift(2.0, "symmetric", Site()), grid=scheduler.timesteps.tolist()):
        made = make()
    return made, hooked(pipe, make, slice(None))


def sdxl(pipe: Any) -> tuple[Tensor, Tensor]:
    from transformers import CLIPTextModelWithProjection

    config = {**pipe.unet.config, "_use_default_values": []} | {
        "cross_attention_dim": 24,
        "addition_embed_type": "text_time",
    }
    config |= {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 36}
    second = pipe.text_encoder.config
    second.projection_dim = 12
    large = StableDiffusionXLPipeline(
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        text_encoder_2=CLIPTextModelWithProjection(second).eval(),
        tokenizer=pipe.tokenizer,
        tokenizer_2=pipe.tokenizer,
        unet=UNet2DConditionModel.from_config(config).eval(),
        scheduler=pipe.scheduler,
        add_watermarker=False,
    )
    (wanted,) = tiny_text_to_image(large, guidance_rescale=0.7).sample(plan([0, 1], [0, 0]), method=Shift(2.0))
    with steering(large, Shift(2.0)):
        return call(large, height=16, width=16, guidance_rescale=0.7), wanted.images


def a_step_that_never_ended(pipe: Any) -> tuple[Tensor, Tensor]:
    with steering(pipe, Shift(2.0)):
        pipe.scheduler.set_timesteps(4)
        pipe._guidance_scale = 1.0
        pipe.unet(LATENTS, GRID[1], encoder_hidden_states=torch.zeros(2, 24, 12))
        return call(pipe), expected(Shift(2.0), 0, 0)


def two_pipelines_of_the_same_parts(pipe: Any) -> tuple[Tensor, Tensor]:
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    with steering(pipe, Shift(2.0)):
        with edited_pipeline(other, Shift(1.0), timesteps=GRID, assign=zeros):
            pass
        assert len(list(pipe.unet.parameters())) == len(list(other.unet.parameters()))
        late = StableDiffusionImg2ImgPipeline(**{**other.components, "unet": pipe.unet}, requires_safety_checker=False)
        made = call(pipe)
    noise = torch.zeros(1, 24, 12)
    assert torch.equal(late.unet(LATENTS[:1], 5, noise)[0], pipe.unet(LATENTS[:1], 5, noise)[0]), "the block has ended"
    return made, expected(Shift(2.0), 0, 0)


RIGHT: dict[str, Callable[[Any], tuple[Tensor, Tensor]]] = {
    "several images per prompt": several_per_prompt,
    "generators in a list": called_with({"latents": None, "generator": [image_generator(3, i) for i in (0, 1)]}),
    "guidance 0": called_with({"guidance_scale": 0.0}, guidance=0.0),
    "guidance 1": called_with({"guidance_scale": 1.0}, guidance=1.0),
    "callback_on_step_end": callback,
    "guidance switched off in the middle": guidance_switched_off_in_the_middle,
    "one step": one_step,
    "img2img with strength": strength,
    "an exception inside": exception_inside,
    "another size in the next call": another_size_in_the_next_call,
    "a method": a_method,
    "another scheduler": another_scheduler,
    "a LoRA": lora,
    "negative prompts": called_with({"negative_prompt": ["blurred"] * 2}, negative_prompt="blurred"),
    "DDPM": ddpm,
    "SDXL": sdxl,
    "a step that never ended": a_step_that_never_ended,
    "two pipelines of the same parts": two_pipelines_of_the_same_parts,
}


@pytest.mark.parametrize("case", RIGHT)
def test_pipelines_of_others_are_edited_right(case: str) -> None:
    made, wanted = RIGHT[case](tiny_pipeline())
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-5)


def unet_called(t: Any, *shapes: tuple[int, ...], **residuals: Tensor) -> Callable[[Any], None]:
    """Calls of the U-Net in the middle of an unguided call of the pipeline."""

    def case(pipe: Any) -> None:
        pipe.scheduler.set_timesteps(4)
        pipe._guidance_scale = 1.0
        for shape in shapes:
            pipe.unet(torch.zeros(shape), t, encoder_hidden_states=torch.zeros(shape[0], 24, 12), **residuals)

    return case


def guided(sample: Tensor) -> Callable[[Any], None]:
    """A call of the U-Net in the middle of a guided call of the pipeline."""

    def case(pipe: Any) -> None:
        pipe.scheduler.set_timesteps(4)
        pipe._guidance_scale = 3.0
        pipe.unet(sample, GRID[0], encoder_hidden_states=torch.zeros(len(sample), 24, 12))

    return case


def another_combination(pipe: Any) -> None:
    pipe.scheduler.set_timesteps(4)
    pipe._guidance_scale = 1.0
    output = pipe.unet(LATENTS, GRID[1], encoder_hidden_states=torch.zeros(2, 24, 12)).sample
    pipe.scheduler.step(2 * output, int(GRID[1]), LATENTS)


def another_scheduler_inside(pipe: Any) -> None:
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    call(pipe)


def another_unet_inside(pipe: Any) -> None:
    pipe.unet = pipe.unet.unet
    call(pipe)


def nested(pipe: Any) -> None:
    with edited_pipeline(pipe, Shift(1.0), timesteps=GRID, assign=zeros):
        pass


def two_threads(pipe: Any) -> None:
    reached = threading.Barrier(2, timeout=60)

    def other() -> None:
        reached.wait()
        pipe.scheduler.set_timesteps(4)

    thread = threading.Thread(target=other)
    thread.start()

    def late(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            reached.wait()
            thread.join()
        return given

    call(pipe, callback_on_step_end=late)


def two_threads_in_the_unet(pipe: Any) -> None:
    refused: list[Exception] = []

    def other() -> None:
        try:
            pipe.unet(LATENTS, GRID[0], encoder_hidden_states=torch.zeros(2, 24, 12))
        except ValueError as error:
            refused.append(error)

    def begin(*_: Any) -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    handle = pipe.unet.mid_block.register_forward_pre_hook(begin)
    try:
        unet_called(GRID[0], (2, 4, 8, 8))(pipe)
    finally:
        handle.remove()
    raise refused[0]


def three_way_guidance(pipe: Any) -> None:
    type(pipe).image_guidance_scale = 1.5
    try:
        call(pipe)
    finally:
        del type(pipe).image_guidance_scale


class TooWide(Shift):
    """An edit made of an SAE of another width."""

    def __call__(self, h: Tensor, step: int, images: Any) -> Tensor:
        return h.flatten(1) @ torch.zeros(3, 3)


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a batch of timesteps": (unet_called(torch.tensor(GRID[:2]), (2, 4, 8, 8)), "2 timesteps at once, .*ParaDiGMS"),
    "a batch that changes": (
        unet_called(GRID[0], (2, 4, 8, 8), (1, 4, 8, 8)),
        "StableDiffusionPipeline changes its batch in the middle",
    ),
    "branches image by image, as in panoramas": (
        guided(LATENTS.repeat_interleave(2, dim=0)),
        "which rows hold which image",
    ),
    "three branches, as perturbed attention has": (guided(LATENTS.repeat(3, 1, 1, 1)), "6 rows for 3 images"),
    "videos": (unet_called(GRID[0], (2, 4, 3, 8, 8)), r"\[2, 4, 3, 8, 8\]; only one with images"),
    "a ControlNet": (
        unet_called(GRID[0], (2, 4, 8, 8), mid_block_additional_residual=torch.zeros(2, 16, 4, 4)),
        "adds residuals inside its U-Net; .*update=symmetric",
    ),
    "an adapter": (
        unet_called(GRID[0], (2, 4, 8, 8), down_intrablock_additional_residuals=[torch.zeros(2, 8, 8, 8)]),
        "adds residuals inside its U-Net; .*update=symmetric",
    ),
    "another combination": (another_combination, "in a way of its own, .*update=symmetric"),
    "another scheduler inside": (another_scheduler_inside, "given another scheduler inside the block"),
    "another U-Net inside": (another_unet_inside, "given another U-Net or scheduler inside the block"),
    "two threads in the U-Net": (two_threads_in_the_unet, "from two threads at once"),
    "nested blocks": (nested, "is steered already"),
    "two threads": (two_threads, "from two threads at once"),
    "three-way guidance": (three_way_guidance, "guides in a way of its own"),
    "another number of steps": (
        lambda pipe: call(pipe, num_inference_steps=3),
        r"found on 4 steps .* the pipeline makes 3 .* num_inference_steps=4",
    ),
    "no prompt": (lambda pipe: call(pipe, [], latents=None), "for no image"),
    "another width": (call, r"do not fit the activations \[D, H, W\] = \[16, 4, 4\] at 'mid_block' of Stable"),
    "both branches without guidance": (
        lambda pipe: call(pipe, guidance_scale=1.0),
        "only the branch cond is computed, got site.branch=both",
    ),
    "too few targets": (lambda pipe: call(pipe, TEXTS * 2, latents=None), "4 images need as many targets, got 2"),
}

EDITS = {
    "another width": TooWide(1.0),
    "both branches without guidance": Shift(1.0, site=Site("mid_block", branch="both")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_edited_is_refused_by_name_and_leaves_the_pipeline_whole(case: str) -> None:
    (make, message), edit = REFUSED[case], EDITS.get(case, Shift(1.0))
    pipe = tiny_pipeline()
    plain, own = call(pipe), (pipe.unet, pipe.scheduler)
    assign = towards(0, 0) if case == "too few targets" else zeros
    with pytest.raises(ValueError, match=message) as caught, steering(pipe, edit, assign):
        make(pipe)
    assert "\n" not in str(caught.value) and (pipe.unet, pipe.scheduler) == own
    assert torch.equal(call(pipe), plain)


@pytest.mark.parametrize("name", ["SAG", "ModelEditing", "Paradigms", "AttendAndExcite", "Semantic"])
def test_pipelines_that_guide_in_a_way_of_their_own_are_refused(name: str) -> None:
    base = tiny_pipeline()
    parts = {key: part for key, part in base.components.items() if key != "image_encoder"}
    prefix, suffix = ("Semantic", "") if name == "Semantic" else ("", name)
    kind = getattr(diffusers, f"{prefix}StableDiffusion{suffix}Pipeline")
    if name == "Paradigms":
        parts["scheduler"] = DDIMParallelScheduler.from_config(base.scheduler.config)
    pipe = kind(**parts, requires_safety_checker=False)
    more = {"AttendAndExcite": {"token_indices": [[2], [2]], "attn_res": (4, 4)}}.get(name, {})
    with (
        pytest.raises(ValueError, match=f"{name}.* guides in a way of its own"),
        steering(pipe, Shift(1.0, "symmetric")),
    ):
        call(pipe, **more)


def compiled_block(pipe: Any) -> Any:
    pipe.unet.up_blocks[0].compile(backend="eager")
    return pipe


def compiled(pipe: Any) -> Any:
    pipe.unet = torch.compile(pipe.unet)
    return pipe


def compiled_in_place(pipe: Any) -> Any:
    pipe.unet.compile()
    return pipe


def unguided(pipe: Any) -> Any:
    pipe.scheduler = EulerDiscreteScheduler()
    return pipe


@pytest.mark.parametrize(
    ("prepare", "edit", "message"),
    [
        (compiled, Shift(1.0), "is compiled"),
        (compiled_in_place, Shift(1.0), "is compiled"),
        (compiled_block, Shift(1.0), "is compiled"),
        (unguided, Shift(1.0), "needs a DDIMScheduler, .*EulerDiscreteScheduler"),
        (lambda _: tiny_pipeline(thresholding=True), Shift(1.0), "no dynamic thresholding"),
        (lambda _: DiffusionPipeline(), Shift(1.0), "DiffusionPipeline has no U-Net"),
        (lambda pipe: pipe, Shift(1.0, site=Site("midblock", branch="cond")), "no module 'midblock'"),
    ],
)
def test_some_pipelines_are_refused_at_once(prepare: Callable[[Any], Any], edit: Shift, message: str) -> None:
    pipe = prepare(tiny_pipeline())
    with pytest.raises(ValueError, match=message), edited_pipeline(pipe, edit, timesteps=GRID, assign=zeros):
        pass


def test_images_of_prompts_that_name_a_class_are_left_alone_and_the_others_get_the_classes() -> None:
    pipe, asked = tiny_pipeline(), []
    plain = call(pipe)

    def assign(n: int) -> Tensor:
        asked.append(n)
        return zeros(n)

    def steered(leaves_alone: Callable[[str], bool], make: Callable[[], Tensor]) -> Tensor:
        with edited_pipeline(pipe, Shift(2.0), timesteps=GRID, assign=assign, leaves_alone=leaves_alone):
            return make()

    def twice() -> Tensor:
        return call(pipe, TEXTS, num_images_per_prompt=2, latents=LATENTS.repeat_interleave(2, 0))

    made = steered(lambda text: "nurse" in text, lambda: call(pipe))
    assert torch.allclose(made[1], plain[1], atol=1e-6) and (made[0] - plain[0]).abs().max() > 1e-3
    every = twice()
    made = steered(lambda text: "doctor" in text, twice)
    assert torch.allclose(made[:2], every[:2], atol=1e-6) and (made[2:] - every[2:]).abs().amax((1, 2, 3)).min() > 1e-3
    assert torch.equal(steered(lambda _: True, lambda: call(pipe)), plain) and asked == [1, 2]
    # Embeddings cannot be read, and the prompts of the call before are not theirs.
    states = pipe.encode_prompt(list(TEXTS), "cpu", 1, False)[0]
    given = {"prompt_embeds": states, "negative_prompt_embeds": pipe.encode_prompt([""] * 2, "cpu", 1, False)[0]}

    def embedded() -> Tensor:
        call(pipe)
        return pipe(**USUAL, latents=LATENTS, **given).images

    assert torch.allclose(steered(lambda _: True, embedded), expected(Shift(2.0), 0, 0), atol=1e-5)
    assert asked == [1, 2, 2]
