"""Scorers that look at no probe: the activations alone, and chance."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.attribution.base import Codes, Head


class MeanActivation:
    """The latent's summed activation; averaged per class and contrasted, it is the mean difference between classes."""

    name = "mean_difference"

    def __call__(
        self, head: Head, codes: Codes, labels: Int[Tensor, "images"], baseline: Codes | None = None
    ) -> Float[Tensor, "images latents"]:
        """See `Scorer`."""
        return (codes if baseline is None else codes - baseline).sum((-1, -2))


class RandomScores:
    """Uniform noise: the control every attribution must beat."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(
        self, head: Head, codes: Codes, labels: Int[Tensor, "images"], baseline: Codes | None = None
    ) -> Float[Tensor, "images latents"]:
        """See `Scorer`; the same scores for every image of a class."""
        rows = torch.empty(head.classes, codes.shape[1], device=codes.device)
        rows.uniform_(generator=torch.Generator(codes.device).manual_seed(self.seed))
        return rows[labels]
