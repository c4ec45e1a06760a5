"""The recipe of the miniature's diffusion model: a diffusers `UNet2DModel` trained on a biased population of drawn faces."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from torch import Tensor, nn

from difflens.miniature.fit import FitSettings, Recipe, batch_indices
from difflens.miniature.population import Population
from difflens.miniature.reference import render_population
from difflens.models.devices import fast_autocast

Judge = Callable[[Tensor], Mapping[str, Tensor]]


class GeneratorRecipe(Recipe):
    """Denoising with a v-prediction loss, whose weight at high noise is what decides the class shares.

    Args:
        population: the biased distribution the model learns.
        unet: the constructor's arguments of `UNet2DModel`.
        scheduler: the constructor's arguments of `DDIMScheduler`.
        pool: number of renders trained on.
        judge: reads the attributes of sampled images [N, 3, H, W] in [0, 1] → name → logits [N, C].
        watched: number of samples a report judges; `watched_steps` their denoising steps.
    """

    name = "generator"

    def __init__(
        self,
        population: Population,
        *,
        unet: Mapping[str, Any],
        scheduler: Mapping[str, object],
        pool: int,
        judge: Judge,
        watched: int,
        watched_steps: int,
    ) -> None:
        self.population, self.unet, self.pool = population, dict(unet), pool
        self.scheduler = DDIMScheduler(**scheduler)
        self.judge, self.watched, self.watched_steps = judge, watched, watched_steps

    @cached_property
    def images(self) -> Tensor:
        """The renders trained on, uint8 [pool, 3, H, W]."""
        return render_population(self.pool, self.population, seed=1)

    def build(self) -> nn.Module:
        """See `Recipe.build`."""
        return UNet2DModel(**self.unet)

    def loss(self, model: nn.Module, step: int, settings: FitSettings) -> Tensor:
        """See `Recipe.loss`."""
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        clean = self.images[batch_indices(step, settings, self.pool)].float() / 127.5 - 1
        noise = torch.randn(clean.shape, generator=generator)
        steps = len(self.scheduler.alphas_cumprod)
        strata = (torch.arange(len(clean)) + torch.rand(len(clean), generator=generator)) / len(clean)
        t = (strata * steps).long().clamp_max(steps - 1)
        noisy = self.scheduler.add_noise(clean, noise, t)
        target = self.scheduler.get_velocity(clean, noise, t)
        return nn.functional.mse_loss(model(noisy, t).sample.float(), target)

    @torch.inference_mode()
    def sample(self, model: nn.Module, n: int, *, seed: int, batch: int = 128) -> Tensor:
        """Plain DDIM samples [n, 3, H, W] in [0, 1]."""
        scheduler = DDIMScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(self.watched_steps)
        generator = torch.Generator().manual_seed(seed)
        size = self.unet["sample_size"]
        images = []
        for start in range(0, n, batch):
            x = torch.randn(min(batch, n - start), 3, size, size, generator=generator)
            for t in scheduler.timesteps:
                with fast_autocast():
                    velocity = model(x, t).sample
                x = scheduler.step(velocity.float(), t, x).prev_sample
            images.append((x / 2 + 0.5).clamp(0, 1))
        return torch.cat(images)

    def report(self, model: nn.Module) -> dict[str, float]:
        """See `Recipe.report`."""
        judged = self.judge(self.sample(model, self.watched, seed=7))
        figures: dict[str, float] = {}
        for name in ("gender", "age", "race"):
            probabilities = judged[name].double().softmax(-1)
            shares = nn.functional.one_hot(probabilities.argmax(-1), probabilities.shape[-1]).double().mean(0)
            figures[f"{name}_confident"] = float((probabilities.amax(-1) >= 0.9).double().mean())
            figures[f"{name}_off"] = float((shares - self.population.share_vector(name)).abs().max())
            figures |= {f"{name}_{i}": float(share) for i, share in enumerate(shares)}
        return figures

    def export(self, model: nn.Module, folder: Path) -> None:
        """See `Recipe.export`."""
        model.half()
        DDIMPipeline(unet=model, scheduler=self.scheduler).save_pretrained(folder)
        for weights in folder.rglob("*.safetensors"):
            weights.chmod(0o644)
