"""Renders of a population: what a generator is trained on, or the balanced reference of FID and KID."""

import torch
from torch import Tensor

from difflens.miniature.faces import render
from difflens.miniature.population import Population


def render_population(images: int, population: Population, *, seed: int = 4) -> Tensor:
    """`images` renders of the population, uint8 [N, 3, 32, 32]."""
    factors = population.sample(images, seed=seed)
    chunks = torch.arange(images).split(256)
    return torch.cat([(render({k: v[rows] for k, v in factors.items()}) * 255).round().byte() for rows in chunks])
