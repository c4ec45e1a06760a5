"""The latents of given images, and how well a denoiser output tells the noise in them."""

import torch
from diffusers import AutoencoderKL, SchedulerMixin
from torch import Tensor

from difflens.models.sampling import estimate


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Latents (float32) of images in [0, 1]: the mean of the VAE's posterior, scaled as the U-Net expects."""
    dtype = vae.dtype
    # SDXL's VAE overflows in half precision; its pipeline decodes in float32 for the same reason.
    working = torch.float32 if dtype == torch.float16 and vae.config.force_upcast else dtype
    if working != dtype:
        vae.to(working)
    try:
        posterior = vae.encode((images * 2 - 1).to(vae.device, working)).latent_dist
    finally:
        if working != dtype:
            vae.to(dtype)
    return posterior.mode().float() * vae.config.scaling_factor


def add_noise(scheduler: SchedulerMixin, clean: Tensor, noise: Tensor, timestep: int) -> Tensor:
    """Latents at a timestep of the forward process, at the scale that the denoiser sees whatever the scheduler's own."""
    alpha = scheduler.alphas_cumprod[timestep].item()
    return alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise


def squared_error(scheduler: SchedulerMixin, output: Tensor, timestep: int, *, noisy: Tensor, noise: Tensor) -> Tensor:
    """Squared error [n] of the noise told by a denoiser output, whose rows may be the batch several times over."""
    repeats = (len(output) // len(noise), 1, 1, 1)
    told = estimate(scheduler, output.float(), timestep, noisy.repeat(repeats)).noise
    return (told - noise.repeat(repeats)).double().square().flatten(1).mean(1)
