"""The recipe of the text-to-image pipeline's autoencoder: a diffusers `AutoencoderKL` of drawn faces."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn

from difflens.miniature.faces import render
from difflens.miniature.fit import FitSettings, Recipe
from difflens.miniature.population import Population
from difflens.models.devices import fast_autocast
from difflens.store.locations import locate


class VaeRecipe(Recipe):
    """Absolute plus squared error of reconstructions and a slight Kullback-Leibler term (Rombach et al., 2022).

    Args:
        population: the faces trained on.
        vae: the constructor's arguments of `AutoencoderKL`.
        kl: weight of the divergence from a unit normal per latent value, against errors of pixels in [-1, 1].
        pool: number of renders trained on; `held_out` the number of fresh ones a report scores.
    """

    name = "vae"

    def __init__(self, population: Population, *, vae: Mapping[str, Any], kl: float, pool: int, held_out: int) -> None:
        self.population, self.vae, self.kl, self.pool, self.held_out = population, dict(vae), kl, pool, held_out
        self._factors = population.sample(pool, seed=2)

    def build(self) -> nn.Module:
        """See `Recipe.build`."""
        return AutoencoderKL(**self.vae)

    def loss(self, model: nn.Module, step: int, settings: FitSettings) -> Tensor:
        """See `Recipe.loss`."""
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        rows = torch.randint(self.pool, (settings.batch,), generator=generator)
        images = render({name: index[rows] for name, index in self._factors.items()}) * 2 - 1
        vae: AutoencoderKL = model
        posterior = vae.encode(images).latent_dist
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        noise = torch.randn(mean.shape, generator=generator)
        error = vae.decode(mean + (0.5 * log_variance).exp() * noise).sample.float() - images
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return error.abs().mean() + error.square().mean() + self.kl * divergence

    @torch.inference_mode()
    def report(self, model: nn.Module) -> dict[str, float]:
        """The signal-to-noise ratio of held-out reconstructions in decibels, and their largest error in [0, 1]."""
        vae: AutoencoderKL = model
        images = self._fresh(self.held_out)
        decoded = torch.cat([vae.decode(vae.encode(x).latent_dist.mode()).sample for x in images.split(128)])
        error = (decoded.clamp(-1, 1) - images) / 2
        return {"psnr": float(-10 * error.square().mean().log10()), "largest_error": float(error.abs().max())}

    @torch.inference_mode()
    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the weights with the `scaling_factor` that gives the latents of renders a standard deviation of 1."""
        vae: AutoencoderKL = model
        latents = torch.cat([vae.encode(x).latent_dist.mode() for x in self._fresh(self.held_out).split(128)])
        vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
        vae.half().save_pretrained(folder)
        for weights in folder.rglob("*.safetensors"):
            weights.chmod(0o644)

    def _fresh(self, n: int) -> Tensor:
        return render(self.population.sample(n, seed=3)) * 2 - 1


def load_vae(folder: str) -> AutoencoderKL:
    """The autoencoder saved in `folder`, in float32 and evaluation mode.

    Raises:
        ValueError: there is none.
    """
    vae = AutoencoderKL.from_pretrained(
        locate(folder), local_files_only=True, torch_dtype=torch.float32, low_cpu_mem_usage=False
    )
    return vae.eval().requires_grad_(False)


@torch.inference_mode()
def encode(vae: AutoencoderKL, images: Tensor) -> Float[Tensor, "images channels height width"]:
    """Scaled latents (float16) of images uint8 [N, 3, H, W]: each the posterior's mode."""
    with fast_autocast():
        posterior = vae.encode(images.float() / 127.5 - 1).latent_dist
    return (posterior.mode().float() * vae.config.scaling_factor).half()
