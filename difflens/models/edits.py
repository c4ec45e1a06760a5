"""What the hooks of an edit do to the images of one denoiser call."""

import torch
from torch import Tensor

from difflens.models.base import Edit
from difflens.models.hooks import Change
from difflens.vocabulary import UNTOUCHED, PerImage


def change_by(edit: Edit, images: PerImage, *, steps: int) -> Change | None:
    """An edit of images of which this is known, None where it may touch none of them.

    At a step outside of its window, and wherever it changes no bit, it gives nothing back: the plain denoiser goes on at
    its own batch size, and so to the same bits.

    Args:
        edit: what is done.
        images: what is known of each, on the device of the activations.
        steps: number of denoising steps.
    """
    if not bool((images.target != UNTOUCHED).any()):
        return None

    def change(h: Tensor, step: int) -> Tensor | None:
        if not edit.active(step, steps):
            return None
        edited = edit(h, step, images)
        return None if torch.equal(edited, h) else edited

    return change
