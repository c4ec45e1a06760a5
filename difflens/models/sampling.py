"""The DDIM update written out, so that the clean image and the direction can come from different noise estimates."""

from typing import NamedTuple

from diffusers import DDIMScheduler, SchedulerMixin
from torch import Tensor


class Estimate(NamedTuple):
    """What one denoiser output says: the clean image x_0 and the noise, both [n, C, H, W]."""

    clean: Tensor
    noise: Tensor


def estimate(scheduler: SchedulerMixin, output: Tensor, timestep: int, x: Tensor) -> Estimate:
    """Read a denoiser output by the scheduler's prediction type; x_0 is clipped if the scheduler clips.

    Raises:
        ValueError: the prediction type is not epsilon, v_prediction or sample.
    """
    alpha = scheduler.alphas_cumprod[timestep].item()
    signal, noise_level = alpha**0.5, (1 - alpha) ** 0.5
    match scheduler.config.prediction_type:
        case "epsilon":
            clean, noise = (x - noise_level * output) / signal, output
        case "v_prediction":
            clean, noise = signal * x - noise_level * output, signal * output + noise_level * x
        case "sample":
            clean, noise = output, (x - signal * output) / noise_level
        case other:
            raise ValueError(f"prediction type {other!r} is not one of epsilon, v_prediction, sample.")
    if scheduler.config.get("clip_sample", False):
        bound = scheduler.config.clip_sample_range
        clean = clean.clamp(-bound, bound)
    return Estimate(clean, noise)


def ddim_step(
    scheduler: DDIMScheduler,
    output: Tensor,
    *,
    timestep: int,
    x: Tensor,
    edited_output: Tensor | None = None,
    eta: float = 0.0,
    variance_noise: Tensor | None = None,
    rederive_direction: bool = False,
) -> Tensor:
    """One step x_t → x_{t−1} (Song et al. 2021, eq. 12), asymmetric where an edited output is given.

    The edited estimate serves the predicted x_0 alone, the direction keeps the unedited one (Kwon et al. 2023, eq. 5;
    METHOD section 5). With equal estimates this is `DDIMScheduler.step`.

    Args:
        scheduler: with its timesteps set.
        output: the denoiser's output for `x` [n, C, H, W] at `timestep`.
        timestep: the current timestep.
        x: the noisy images.
        edited_output: the denoiser's output with edited activations.
        eta: 0 deterministic, 1 as DDPM.
        variance_noise: fresh standard normal noise, needed when eta > 0.
        rederive_direction: derive the unedited noise again from the (clipped) unedited x_0.
    """
    previous = timestep - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    alpha = scheduler.alphas_cumprod[timestep].item()
    alpha_previous = (scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod).item()
    unedited = estimate(scheduler, output, timestep, x)
    clean = unedited.clean if edited_output is None else estimate(scheduler, edited_output, timestep, x).clean
    noise = (x - alpha**0.5 * unedited.clean) / (1 - alpha) ** 0.5 if rederive_direction else unedited.noise
    sigma = eta * ((1 - alpha_previous) / (1 - alpha) * (1 - alpha / alpha_previous)) ** 0.5
    x = alpha_previous**0.5 * clean + max(1 - alpha_previous - sigma**2, 0.0) ** 0.5 * noise
    if sigma == 0:
        return x
    if variance_noise is None:
        raise ValueError(f"eta {eta} needs variance_noise, one fresh draw per image and step.")
    return x + sigma * variance_noise
