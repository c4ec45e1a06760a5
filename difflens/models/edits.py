"""What the hooks of an edit do to the images of one denoiser call."""

import torch
from torch import Tensor

from difflens.models.base import Edit
from difflens.models.hooks import Change
from difflens.vocabulary import UNTOUCHED


def change_by(edit: Edit, targets: Tensor, *, steps: int) -> Change | None:
    """An edit of images with these targets, None where it may touch none of them.

    At a step outside of its window, and wherever it changes no bit, it gives nothing back: the plain denoiser goes on at
    its own batch size, and so to the same bits.

    Args:
        edit: what is done.
        targets: of each image [n], on the device of the activations.
        steps: number of denoising steps.
    """
    if not bool((targets != UNTOUCHED).any()):
        return None

    def change(h: Tensor, step: int) -> Tensor | None:
        if not edit.active(step, steps):
            return None
        edited = edit(h, step, targets)
        return None if torch.equal(edited, h) else edited

    return change
