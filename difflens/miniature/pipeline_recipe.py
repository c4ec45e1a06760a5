"""The recipe of the miniature Stable Diffusion: a diffusers `StableDiffusionPipeline` of faces at biased workplaces."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from difflens.miniature.captions import prompts as prompts_of
from difflens.miniature.faces import WORKPLACE_FACTORS, render
from difflens.miniature.fit import FitSettings, Recipe, batch_indices
from difflens.miniature.generator import Judge
from difflens.miniature.outfits import PROFESSIONS
from difflens.miniature.population import Population
from difflens.miniature.prompted import NAMEABLE, draw_prompted_faces, without_bias
from difflens.miniature.tokenizer import build_tokenizer
from difflens.miniature.vae_recipe import encode
from difflens.models.devices import fast_autocast

WATCHED = PROFESSIONS[1:5]
"""The professions whose neutral prompts a report samples."""


class Denoiser(nn.Module):
    """The U-Net and the text encoder that are trained together."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, noisy: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Velocity of `noisy` latents [N, C, H, W] at steps `t` [N] for prompts of `tokens` [N, L]."""
        return self.unet(noisy, t, encoder_hidden_states=self.text_encoder(tokens).last_hidden_state).sample


class PipelineRecipe(Recipe):
    """Denoising latents with a v-prediction loss, given prompts that are sometimes empty (Ho & Salimans, 2022).

    Args:
        population: the biased distribution of faces with professions.
        vae: the trained autoencoder.
        unet: the constructor's arguments of `UNet2DConditionModel`; `text` those of `CLIPTextConfig` but for what the
            tokenizer decides, `scheduler` those of `DDIMScheduler`.
        context_length: tokens of a prompt including its start and end.
        pool: number of renders trained on; for `empty` and `neutral` see `draw_prompted_faces`.
        judge: reads the attributes of sampled images [N, 3, H, W] in [0, 1] → name → logits [N, C].
        watched: number of samples a report judges per prompt; `watched_steps` their denoising steps at `guidance`.
    """

    name = "text_to_image"

    def __init__(
        self,
        population: Population,
        *,
        vae: AutoencoderKL,
        unet: Mapping[str, Any],
        text: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        context_length: int,
        pool: int,
        empty: float,
        neutral: float,
        judge: Judge,
        watched: int,
        watched_steps: int,
        guidance: float,
    ) -> None:
        self.population, self.vae, self.unet, self.text, self.pool = population, vae, dict(unet), dict(text), pool
        self.scheduler = DDIMScheduler(**scheduler)
        self.judge, self.watched, self.watched_steps, self.guidance = judge, watched, watched_steps, guidance
        self.faces = draw_prompted_faces(population, pool, seed=1, empty=empty, neutral=neutral)
        words = {word for prompt in self.faces.prompts for word in prompt.lower().split()}
        self.tokenizer = build_tokenizer(words, context_length=context_length)

    @cached_property
    def tokens(self) -> Tensor:
        """Token ids [prompts, context] of the distinct prompts."""
        return self.tokenizer(self.faces.prompts, padding="max_length", return_tensors="pt").input_ids

    @cached_property
    def latents(self) -> Tensor:
        """Scaled latents of the renders trained on, float16 [pool, C, H, W]."""
        size, channels = self.unet["sample_size"], self.unet["in_channels"]
        latents = torch.empty(self.pool, channels, size, size, dtype=torch.float16)
        for rows in torch.arange(self.pool).split(256):
            images = render({name: index[rows] for name, index in self.faces.factors.items()})
            latents[rows] = encode(self.vae, (images * 255).round().byte())
        return latents

    def build(self) -> nn.Module:
        """See `Recipe.build`."""
        ids = {name: getattr(self.tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        length = self.tokenizer.model_max_length
        text = CLIPTextConfig(**self.text, **ids, vocab_size=len(self.tokenizer), max_position_embeddings=length)
        unet = UNet2DConditionModel(**self.unet)
        # On CPUs the fused attention's backward pass takes several times as long as the plain one's.
        unet.set_attn_processor(AttnProcessor())
        return Denoiser(unet, CLIPTextModel._from_config(text, attn_implementation="eager"))

    def loss(self, model: nn.Module, step: int, settings: FitSettings) -> Tensor:
        """See `Recipe.loss`."""
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        rows = batch_indices(step, settings, self.pool)
        clean = self.latents[rows].float()
        noise = torch.randn(clean.shape, generator=generator)
        steps = len(self.scheduler.alphas_cumprod)
        strata = (torch.arange(len(clean)) + torch.rand(len(clean), generator=generator)) / len(clean)
        t = (strata * steps).long().clamp_max(steps - 1)
        noisy = self.scheduler.add_noise(clean, noise, t)
        target = self.scheduler.get_velocity(clean, noise, t)
        return nn.functional.mse_loss(model(noisy, t, self.tokens[self.faces.prompt[rows]]).float(), target)

    def pipeline(self, model: nn.Module) -> StableDiffusionPipeline:
        """The pipeline of a trained model, which shares its weights."""
        pipeline = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=model.text_encoder,
            tokenizer=self.tokenizer,
            unet=model.unet,
            scheduler=DDIMScheduler.from_config(self.scheduler.config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def sample(self, model: nn.Module, prompts: Sequence[str], *, seed: int) -> Float[Tensor, "images 3 height width"]:
        """Images in [0, 1] of the pipeline's own sampler, one per prompt."""
        pipeline, generator = self.pipeline(model), torch.Generator().manual_seed(seed)
        images = []
        for start in range(0, len(prompts), 64):
            with fast_autocast():
                images.append(
                    pipeline(
                        list(prompts[start : start + 64]),
                        num_inference_steps=self.watched_steps,
                        guidance_scale=self.guidance,
                        generator=generator,
                        output_type="pt",
                    ).images
                )
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
                shares = torch.bincount(judged[name], minlength=len(values)).double() / self.watched
                trained = self.population.conditional[name].shares[profession]
                figures |= {f"{profession}_{value}": float(shares[i]) for i, value in enumerate(values)}
                off = max(abs(float(shares[i]) - trained[value]) for i, value in enumerate(values))
                figures[f"{profession}_{name}_off"] = off
        return figures

    def _report_named(self, model: nn.Module) -> dict[str, float]:
        names = ("profession", *NAMEABLE)
        n = 2 * self.watched
        faces = without_bias(self.population, NAMEABLE).sample(n, seed=7)
        judged = self._read(model, prompts_of(faces, {name: torch.ones(n, dtype=torch.bool) for name in names}))
        return {f"named_{name}_obeyed": float((judged[name] == faces[name]).double().mean()) for name in names}

    def _read(self, model: nn.Module, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {name: logits.argmax(-1) for name, logits in self.judge(self.sample(model, prompts, seed=7)).items()}

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the pipeline, its U-Net and autoencoder in half precision.

        The text encoder stays in single precision: transformers loads weights as they are saved, diffusers in float32, and
        a pipeline loaded without a `torch_dtype` must not mix the two.
        """
        self.vae.half()
        model.unet.half()
        self.pipeline(model).save_pretrained(folder)
        for file in (file for file in folder.rglob("*") if file.is_file()):
            file.chmod(0o644)
