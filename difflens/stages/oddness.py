"""How odd images look to the model that made them: how much worse it tells the noise on them than on its own originals.

The denoising error is a term of the model's own bound on an image's likelihood (Ho et al. 2020, arXiv 2006.11239, eq. 14). No
reference images are needed, and what no original shows, such as hair that is half transparent, is not explained away.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from difflens.judges.faces import float_pieces
from difflens.models.model import DiffusionModel
from difflens.vocabulary import Site

LEVELS = (0.75, 0.85, 0.95)
"""Noise levels, as shares of the steps: with more noise than at the first, details that look wrong drown."""


def denoising_errors(
    model: DiffusionModel,
    images: UInt8[Tensor, "images 3 height width"],
    site: Site,
    prompts: Sequence[str] | None = None,
) -> Float[Tensor, "images levels"]:
    """Squared error of the untouched denoiser on images (uint8) noised to each of `LEVELS`.

    Args:
        model: that made them.
        images: in 8 bits.
        site: whose branch of guidance is measured.
        prompts: of every image, for a model that takes them.
    """
    # Of its own grid, which may be another than the studied one (task=transfer).
    steps = [int(level * len(model.timesteps)) for level in LEVELS]
    found, start = [], 0
    for whole in float_pieces(images):
        # The noise belongs to the place in a piece, so that an image and its edit meet the same.
        for piece in whole.split(model.micro_batch):
            texts = None if prompts is None else prompts[start : start + len(piece)]
            losses = [model.denoising_loss(piece, step, site=site, prompts=texts) for step in steps]
            found.append(torch.stack(losses, 1))
            start += len(piece)
    return torch.cat(found)


def oddness(
    errors: Float[Tensor, "images levels"],
    classes: Int[Tensor, "images"],
    originals: Float[Tensor, "originals levels"],
    shown: Int[Tensor, "originals"],
) -> Float[Tensor, "images"]:
    """Denoising errors as multiples of the mean error of originals of the same class, averaged over the levels.

    Args:
        errors: of the images.
        classes: that each of them should show.
        originals: the errors of unedited images.
        shown: their classes; a class that none shows is compared with all of them.
    """
    usual = {int(index): originals[shown == index].mean(0) for index in shown.unique()}
    mean = originals.mean(0)
    against = torch.stack([usual.get(index, mean) for index in classes.tolist()])
    return (errors / against).mean(1)
