"""What the miniature's diffusion models learn from: the generator, and the text-to-image pipeline with its autoencoder."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from difflens.miniature.captions import build_tokenizer, prompts
from difflens.miniature.faces import PROFESSIONS, WORKPLACE_FACTORS, render
from difflens.miniature.fit import FitSettings, Recipe, batch_indices
from difflens.miniature.population import NAMEABLE, Population, PromptedFaces, draw_prompted_faces, without_bias
from difflens.miniature.reference import render_population
from difflens.models.devices import fast_autocast
from difflens.store.locations import locate

Judge = Callable[[Tensor], Mapping[str, Tensor]]
"""Reads the attributes of images [N, 3, H, W] in [0, 1]: name → logits [N, C]."""
WATCHED = PROFESSIONS[1:5]
"""The professions whose neutral prompts a report of the text-to-image model samples."""


class Autoencoding(Recipe):
    """Absolute plus squared error of reconstructions and a slight Kullback-Leibler term (Rombach et al., 2022)."""

    vae: Mapping[str, Any]
    kl: float

    @abstractmethod
    def images(self, n: int, generator: torch.Generator) -> Tensor:
        """Some of the images trained on, in [-1, 1]."""

    @abstractmethod
    def unseen(self) -> Tensor:
        """Those that a report scores, in [-1, 1]."""

    def build(self) -> nn.Module:
        """An `AutoencoderKL`."""
        return AutoencoderKL(**self.vae)

    def loss(self, model: nn.Module, step: int, settings: FitSettings) -> Tensor:
        """Of reconstructions from a draw of the posterior."""
        vae: AutoencoderKL = model
        generator = settings.generator(step)
        images = self.images(settings.batch, generator)
        posterior = vae.encode(images).latent_dist
        # In float32: under autocast these are bfloat16, with three digits at most, and an exponential magnifies that.
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        # Drawn here and not by the posterior: the loss of a step depends on weights, seed and step alone.
        noise = torch.randn(mean.shape, generator=generator)
        error = vae.decode(mean + (0.5 * log_variance).exp() * noise).sample.float() - images
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return error.abs().mean() + error.square().mean() + self.kl * divergence

    @torch.inference_mode()
    def report(self, model: nn.Module) -> dict[str, float]:
        """Of reconstructed faces: the signal-to-noise ratio in decibels, and the largest error in [0, 1]."""
        vae: AutoencoderKL = model
        images, latents = self._held_out(vae)
        decoded = torch.cat([vae.decode(part).sample for part in latents.split(128)])
        error = (decoded.clamp(-1, 1) - images) / 2
        return {"psnr": float(-10 * error.square().mean().log10()), "largest_error": float(error.abs().max())}

    @torch.inference_mode()
    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the weights with the `scaling_factor` that gives the latents of renders a standard deviation of 1."""
        vae: AutoencoderKL = model
        vae.register_to_config(scaling_factor=round(1 / float(self._held_out(vae)[1].std()), 5))
        vae.half().save_pretrained(folder)

    def _held_out(self, vae: AutoencoderKL) -> tuple[Tensor, Tensor]:
        images = self.unseen()
        return images, torch.cat([vae.encode(part).latent_dist.mode() for part in images.split(128)])


@dataclass(eq=False)
class VaeRecipe(Autoencoding):
    """The text-to-image pipeline's autoencoder, of renders.

    Args:
        population: the faces trained on.
        vae: the constructor's arguments of `AutoencoderKL`.
        kl: weight of the divergence from a unit normal per latent value, against errors of pixels in [-1, 1].
        pool: number of renders trained on.
        held_out: number of faces, drawn anew, that a report scores; the pool may hold most of them too.
    """

    population: Population
    vae: Mapping[str, Any]
    kl: float
    pool: int
    held_out: int
    name: str = "vae"

    @cached_property
    def faces(self) -> dict[str, Tensor]:
        """The faces trained on: factor → int64 [pool]."""
        return self.population.sample(self.pool, seed=2)

    def images(self, n: int, generator: torch.Generator) -> Tensor:
        """Renders of the pool."""
        rows = torch.randint(self.pool, (n,), generator=generator)
        return render({name: index[rows] for name, index in self.faces.items()}) * 2 - 1

    def unseen(self) -> Tensor:
        """Renders of faces drawn anew."""
        return render(self.population.sample(self.held_out, seed=3)) * 2 - 1


def load_vae(folder: str) -> AutoencoderKL:
    """The autoencoder saved in `folder`, in float32 and evaluation mode (ValueError: there is none)."""
    # A folder is never asked of the hub, which is tried five times where nothing lies.
    options = {"local_files_only": True, "torch_dtype": torch.float32, "low_cpu_mem_usage": False}
    return AutoencoderKL.from_pretrained(locate(folder), **options).eval().requires_grad_(False)


@torch.inference_mode()
def encode(vae: AutoencoderKL, images: Tensor) -> Float[Tensor, "images channels height width"]:
    """Scaled latents (float16) of images uint8 [N, 3, H, W]: each the posterior's mode."""
    with fast_autocast():
        posterior = vae.encode(images.float() / 127.5 - 1).latent_dist
    return (posterior.mode().float() * vae.config.scaling_factor).half()


class Denoising(Recipe):
    """A v-prediction loss, whose weight at high noise is what decides the class shares."""

    scheduler: Mapping[str, Any]
    pool: int

    @cached_property
    def schedule(self) -> DDIMScheduler:
        """The scheduler that adds the noise of training, and is exported."""
        return DDIMScheduler(**self.scheduler)

    @abstractmethod
    def clean(self, rows: Tensor) -> Tensor:
        """What the noise is added to (float32)."""

    @abstractmethod
    def velocity(self, model: nn.Module, noisy: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        """The model's prediction for what stems from these rows of the pool."""

    def loss(self, model: nn.Module, step: int, settings: FitSettings) -> Tensor:
        """The squared error of the velocity, at steps drawn evenly over the schedule."""
        generator, rows = settings.generator(step), batch_indices(step, settings, self.pool)
        clean = self.clean(rows)
        noise = torch.randn(clean.shape, generator=generator)
        steps = len(self.schedule.alphas_cumprod)
        # One timestep in each of N equal parts of the schedule: the noisiest steps, which decide the class shares and
        # converge last, are in every batch.
        strata = (torch.arange(len(clean)) + torch.rand(len(clean), generator=generator)) / len(clean)
        t = (strata * steps).long().clamp_max(steps - 1)
        target = self.schedule.get_velocity(clean, noise, t)
        found = self.velocity(model, self.schedule.add_noise(clean, noise, t), t, rows)
        return nn.functional.mse_loss(found.float(), target)

    def sampled(
        self, model: nn.Module, n: int, shape: tuple[int, ...], *, steps: int, seed: int, batch: int = 128
    ) -> Iterator[Tensor]:
        """What plain DDIM makes of `n` draws of noise of that shape by a model that is told nothing else, batch by batch."""
        scheduler = DDIMScheduler.from_config(self.schedule.config)
        scheduler.set_timesteps(steps)
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, n, batch):
            x = torch.randn(min(batch, n - start), *shape, generator=generator)
            for t in scheduler.timesteps:
                with fast_autocast():
                    velocity = model(x, t).sample
                # The state stays in float32: rounding would add up from step to step.
                x = scheduler.step(velocity.float(), t, x).prev_sample
            yield x


@dataclass(eq=False)
class GeneratorRecipe(Denoising):
    """Denoising renders of a biased population.

    Args:
        population: the faces trained on.
        unet: the constructor's arguments of `UNet2DModel`; `scheduler` those of `DDIMScheduler`.
        pool: number of renders trained on.
        judge: reads the attributes of sampled images.
        watched: number of samples a report judges; `watched_steps` their denoising steps.
    """

    population: Population
    unet: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    pool: int
    judge: Judge
    watched: int
    watched_steps: int
    name: str = "generator"

    @cached_property
    def images(self) -> Tensor:
        """The renders trained on, uint8 [pool, 3, H, W]."""
        return render_population(self.pool, self.population, seed=1)

    def build(self) -> nn.Module:
        """A `UNet2DModel`."""
        return UNet2DModel(**self.unet)

    def clean(self, rows: Tensor) -> Tensor:
        """Renders in [-1, 1]."""
        return self.images[rows].float() / 127.5 - 1

    def velocity(self, model: nn.Module, noisy: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        """That of the U-Net, which is told nothing else."""
        return model(noisy, t).sample

    @torch.inference_mode()
    def sample(self, model: nn.Module, n: int, *, seed: int) -> Tensor:
        """Plain DDIM samples [n, 3, H, W] in [0, 1]."""
        shape = 3, self.unet["sample_size"], self.unet["sample_size"]
        parts = self.sampled(model, n, shape, steps=self.watched_steps, seed=seed)
        return torch.cat([(x / 2 + 0.5).clamp(0, 1) for x in parts])

    def report(self, model: nn.Module) -> dict[str, float]:
        """Class shares, how far they are off, and how often the judge is sure."""
        # Shares and confidence, on the same seeds every time: images look clean long before shares are right, and the
        # loss alone does not tell.
        judged = self.judge(self.sample(model, self.watched, seed=7))
        figures: dict[str, float] = {}
        for name in NAMEABLE:
            probabilities = judged[name].double().softmax(-1)
            shares = nn.functional.one_hot(probabilities.argmax(-1), probabilities.shape[-1]).double().mean(0)
            figures[f"{name}_confident"] = float((probabilities.amax(-1) >= 0.9).double().mean())
            figures[f"{name}_off"] = float((shares - self.population.share_vector(name)).abs().max())
            figures |= {f"{name}_{i}": float(share) for i, share in enumerate(shares)}
        return figures

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write a `DDIMPipeline`."""
        DDIMPipeline(unet=model.half(), scheduler=self.schedule).save_pretrained(folder)


class Denoiser(nn.Module):
    """The U-Net and the text encoder that are trained together."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, noisy: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Velocity of `noisy` latents [N, C, H, W] at steps `t` [N] for prompts of `tokens` [N, L]."""
        return self.unet(noisy, t, encoder_hidden_states=self.text_encoder(tokens).last_hidden_state).sample


@dataclass(eq=False)
class PipelineRecipe(Denoising):
    """Denoising latents, given prompts that are sometimes empty (Ho & Salimans, 2022).

    Args:
        population: the biased distribution of faces with professions.
        autoencoder: trained.
        unet: the constructor's arguments of `UNet2DConditionModel`; `text` those of `CLIPTextConfig` but for what the
            tokenizer decides, `scheduler` those of `DDIMScheduler`.
        context_length: tokens of a prompt including its start and end.
        pool: number of renders trained on; for `empty` and `neutral` see `draw_prompted_faces`.
        judge: reads the attributes of sampled images.
        watched: number of samples a report judges per prompt; `watched_steps` their denoising steps at `guidance`.
    """

    population: Population
    autoencoder: AutoencoderKL
    unet: Mapping[str, Any]
    text: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    context_length: int
    pool: int
    empty: float
    neutral: float
    judge: Judge
    watched: int
    watched_steps: int
    guidance: float
    name: str = "text_to_image"

    def __post_init__(self) -> None:
        shares = {"empty": self.empty, "neutral": self.neutral}
        self.faces: PromptedFaces = draw_prompted_faces(self.population, self.pool, seed=1, **shares)
        words = {word for prompt in self.faces.prompts for word in prompt.lower().split()}
        self.tokenizer = build_tokenizer(words, context_length=self.context_length)

    @cached_property
    def tokens(self) -> Tensor:
        """Token ids [prompts, context] of the distinct prompts."""
        return self.tokenizer(self.faces.prompts, padding="max_length", return_tensors="pt").input_ids

    @cached_property
    def latents(self) -> Tensor:
        """Scaled latents of the renders trained on, float16 [pool, C, H, W]."""
        size, channels = self.unet["sample_size"], self.unet["in_channels"]
        # Encoded once, since the autoencoder is finished; 65,536 latents of 8 × 8 × 8 in half precision are 67 MB.
        latents = torch.empty(self.pool, channels, size, size, dtype=torch.float16)
        for rows in torch.arange(self.pool).split(256):
            images = render({name: index[rows] for name, index in self.faces.factors.items()})
            latents[rows] = encode(self.autoencoder, (images * 255).round().byte())
        return latents

    def build(self) -> nn.Module:
        """A `UNet2DConditionModel` and a `CLIPTextModel` of the tokenizer's words."""
        ids = {name: getattr(self.tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        length = self.tokenizer.model_max_length
        text = CLIPTextConfig(**self.text, **ids, vocab_size=len(self.tokenizer), max_position_embeddings=length)
        unet = UNet2DConditionModel(**self.unet)
        # On CPUs the fused attention's backward pass takes several times as long as the plain one's.
        unet.set_attn_processor(AttnProcessor())
        return Denoiser(unet, CLIPTextModel._from_config(text, attn_implementation="eager"))

    def clean(self, rows: Tensor) -> Tensor:
        """Latents."""
        return self.latents[rows].float()

    def velocity(self, model: nn.Module, noisy: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        """That of the prompts of these rows."""
        # Token ids and not text states: the text encoder learns too.
        return model(noisy, t, self.tokens[self.faces.prompt[rows]])

    def pipeline(self, model: nn.Module) -> StableDiffusionPipeline:
        """The pipeline of a trained model, which shares its weights."""
        pipeline = StableDiffusionPipeline(
            vae=self.autoencoder,
            text_encoder=model.text_encoder,
            tokenizer=self.tokenizer,
            unet=model.unet,
            scheduler=DDIMScheduler.from_config(self.schedule.config),
            # A checker would black out samples, which would then enter every figure.
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def sample(self, model: nn.Module, texts: Sequence[str], *, seed: int) -> Float[Tensor, "images 3 height width"]:
        """Images in [0, 1] of the pipeline's own sampler, one per prompt."""
        pipeline, generator = self.pipeline(model), torch.Generator().manual_seed(seed)
        options = {"num_inference_steps": self.watched_steps, "guidance_scale": self.guidance, "output_type": "pt"}
        images = []
        for start in range(0, len(texts), 64):
            with fast_autocast():
                images.append(pipeline(list(texts[start : start + 64]), generator=generator, **options).images)
        return torch.cat(images).float()

    def report(self, model: nn.Module) -> dict[str, float]:
        """Shares under neutral prompts, how far they are off, and how often prompts are obeyed that name everything."""
        return {**self._report_neutral(model), **self._report_named(model)}

    def _report_neutral(self, model: nn.Module) -> dict[str, float]:
        figures: dict[str, float] = {}
        for profession in WATCHED:
            judged = self._read(model, [f"a face of a {profession}"] * self.watched)
            obeyed = judged["profession"] == PROFESSIONS.index(profession)
            figures[f"{profession}_obeyed"] = float(obeyed.double().mean())
            for name in NAMEABLE:
                values = WORKPLACE_FACTORS[name]
                shares = (torch.bincount(judged[name], minlength=len(values)).double() / self.watched).tolist()
                trained = self.population.conditional[name].shares[profession]
                figures |= {f"{profession}_{value}": share for value, share in zip(values, shares, strict=True)}
                off = max(abs(share - trained[value]) for value, share in zip(values, shares, strict=True))
                figures[f"{profession}_{name}_off"] = off
        return figures

    def _report_named(self, model: nn.Module) -> dict[str, float]:
        names = ("profession", *NAMEABLE)
        n = 2 * self.watched
        # Uniform in all that is named: by the biased shares, rare combinations would hardly be tried.
        faces = without_bias(self.population, NAMEABLE).sample(n, seed=7)
        judged = self._read(model, prompts(faces, {name: torch.ones(n, dtype=torch.bool) for name in names}))
        return {f"named_{name}_obeyed": float((judged[name] == faces[name]).double().mean()) for name in names}

    def _read(self, model: nn.Module, texts: Sequence[str]) -> dict[str, Tensor]:
        # The same seed in every report, so that reports can be compared.
        return {name: logits.argmax(-1) for name, logits in self.judge(self.sample(model, texts, seed=7)).items()}

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the pipeline, its U-Net and autoencoder in half precision.

        The text encoder stays in single precision: transformers loads weights as they are saved, diffusers in float32, and
        a pipeline loaded without a `torch_dtype` must not mix the two.
        """
        self.autoencoder.half()
        model.unet.half()
        self.pipeline(model).save_pretrained(folder)
