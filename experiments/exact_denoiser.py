"""How much of the generator's shares is the sampler's doing? `uv run python experiments/exact_denoiser.py`.

Samples with the shipped model's own DDIM scheduler but, in place of its network, with the exact denoiser of a set of renders:
the posterior mean E[x₀ | x_t], which no training could better. Every sample then ends at one of the renders, whose factors
are known, so that no judge is asked either. What the shares are still off by is the error of taking so few first-order steps.
"""

import argparse
import math

import torch
from diffusers import DDIMScheduler
from rich.console import Console
from rich.table import Table
from torch import Tensor

from difflens.miniature.faces import FACTORS
from difflens.miniature.population import named_population
from difflens.miniature.reference import render_population
from difflens.models.sampling import image_generator, normal
from difflens.store.locations import locate
from difflens.store.progress import progress

STUDIED = ("gender", "age", "race")
ROWS = 512


class ExactDenoiser:
    """E[x₀ | x_t] where x₀ is one of the renders [N, 3, H, W] in [−1, 1], each as likely as any other."""

    def __init__(self, renders: Tensor) -> None:
        self.renders = renders.flatten(1)
        self.squared = self.renders.square().sum(1)

    def posterior(self, x: Tensor, alpha_bar: float) -> Tensor:
        """p(render | x) [n, N] for x_t = √ᾱ x₀ + √(1−ᾱ) ε."""
        log_likelihood = math.sqrt(alpha_bar) * (x.flatten(1) @ self.renders.T) - alpha_bar / 2 * self.squared
        return (log_likelihood / (1 - alpha_bar)).softmax(-1)

    def __call__(self, x: Tensor, alpha_bar: float) -> Tensor:
        """The posterior mean, in the shape of x."""
        return torch.cat([(self.posterior(part, alpha_bar) @ self.renders).view_as(part) for part in x.split(ROWS)])


@torch.inference_mode()
def sample(denoiser: ExactDenoiser, scheduler: DDIMScheduler, noise: Tensor, steps: int) -> Tensor:
    """The render [n] at which each noise ends after so many DDIM steps."""
    scheduler.set_timesteps(steps)
    x = noise
    for t in progress(scheduler.timesteps, f"{steps} steps"):
        x = scheduler.step(denoiser(x, float(scheduler.alphas_cumprod[t])), t, x).prev_sample
    nearest = [torch.cdist(part.flatten(1), denoiser.renders).argmin(1) for part in x.split(ROWS)]
    return torch.cat(nearest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--renders", type=int, default=8192)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--seed", type=int, default=31_337)
    asked = parser.parse_args()
    population = named_population("biased")
    factors = population.sample(asked.renders, seed=1)
    denoiser = ExactDenoiser(render_population(asked.renders, population, seed=1) / 127.5 - 1)
    folder = locate("package:miniature/weights/generator") / "scheduler"
    scheduler = DDIMScheduler.from_pretrained(folder, prediction_type="sample")
    streams = [image_generator(asked.seed, number) for number in range(asked.images)]
    noise = normal(streams, (3, 32, 32), device=torch.device("cpu"))
    ends = {steps: sample(denoiser, scheduler, noise, steps) for steps in asked.steps}
    table = Table("class", "renders", *(f"{steps} steps" for steps in asked.steps))
    for name in STUDIED:
        for value, label in enumerate(FACTORS[name]):
            is_class = (factors[name] == value).double()
            found = (f"{float(is_class[rows].mean()):.3f}" for rows in ends.values())
            table.add_row(label, f"{float(is_class.mean()):.3f}", *found)
    Console().print(table)
    print(f"standard error of a share of 0.5: {0.5 / math.sqrt(asked.images):.3f}")


if __name__ == "__main__":
    main()
