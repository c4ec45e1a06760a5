"""Renders of a population: what a generator is trained on, or the balanced reference of FID and KID."""

import torch
from torch import Tensor

from difflens.miniature.faces import render
from difflens.miniature.population import Population, named_population


def render_population(images: int, population: Population | str, *, seed: int = 4) -> Tensor:
    """`images` renders of a population, or of the one of that name, uint8 [N, 3, 32, 32].

    Raises:
        ValueError: there is no population of that name.
    """
    population = named_population(population) if isinstance(population, str) else population
    factors = population.sample(images, seed=seed)
    # In parts: every canvas of 65,536 faces takes 0.8 GB in float32, and painting makes many.
    chunks = torch.arange(images).split(256)
    # In 8 bits like the images that are compared with it.
    return torch.cat([(render({k: v[rows] for k, v in factors.items()}) * 255).round().byte() for rows in chunks])
