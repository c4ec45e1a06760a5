"""What the selected latents usually do in images of each class: the scale on which an edit's strength is read."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.sae.base import SparseAutoencoder


class CodeStatistics(NamedTuple):
    """Activity of the selected latents.

    Attributes:
        latents: which latents [L].
        mean: mean code at every position over images of each class [C, steps, L, H, W].
        level: mean activation where the latent fired [steps, L]; zero if it never did.
    """

    latents: Int[Tensor, "selected"]
    mean: Float[Tensor, "classes steps selected height width"]
    level: Float[Tensor, "steps selected"]

    def contrast(self, step: int) -> Float[Tensor, "classes selected height width"]:
        """Each class's mean code map minus the mean of the other classes'."""
        mean = self.mean[:, step]
        return (mean * len(mean) - mean.sum(0)) / (len(mean) - 1)


@torch.no_grad()
def code_statistics(
    sae: SparseAutoencoder,
    latents: Int[Tensor, "selected"],
    batches: Iterable[tuple[Tensor, Tensor, int]],
    *,
    classes: int,
    steps: int,
) -> CodeStatistics:
    """Statistics over batches (maps [n, D, H, W], labels [n], step); they do not depend on how images are batched."""
    total = level = fired = images = torch.zeros(())
    for maps, labels, step in batches:
        codes = sae.codes_of_latents(maps.float(), latents).double()
        if not total.ndim:
            total = torch.zeros(classes, steps, *codes.shape[1:], dtype=torch.float64)
            level = torch.zeros(steps, len(latents), dtype=torch.float64)
            fired = torch.zeros_like(level)
            images = torch.zeros(classes, steps, dtype=torch.float64)
        total[:, step].index_add_(0, labels, codes)
        images[:, step] += torch.bincount(labels, minlength=classes)
        level[step] += codes.sum((0, 2, 3))
        fired[step] += (codes > 0).sum((0, 2, 3))
    mean = total / images[:, :, None, None, None].clamp_min(1)
    return CodeStatistics(latents, mean.float(), (level / fired.clamp_min(1)).float())
