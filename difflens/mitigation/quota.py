"""Target classes handed out a few at a time, so that all of them together meet the target distribution."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.mitigation.assignment import largest_remainder


class Quota:
    """Gives the images of each call their classes: after n images in all, the counts are the largest-remainder quota of n.

    Where a larger n would take a class's image back (the Alabama paradox, from three unequal shares on), the counts come as
    near to the shares as they can.

    Args:
        target: q.
        seed: shuffles who gets which class; every call is shuffled anew.
    """

    def __init__(self, target: Float[Tensor, "classes"], *, seed: int) -> None:
        self._target, self._seed = target.double() / target.double().sum(), seed
        self._given = torch.zeros(len(target), dtype=torch.int64)

    def __call__(self, images: int) -> Int[Tensor, "images"]:
        """The classes of so many further images."""
        wanted = self._given.sum() + images
        unmet = (largest_remainder(self._target, int(wanted)) - self._given).clamp_min(0)
        while unmet.sum() > images:
            ahead = (self._given + unmet - wanted * self._target).masked_fill(unmet == 0, -torch.inf)
            unmet[ahead.argmax()] -= 1
        self._given += unmet
        classes = torch.repeat_interleave(torch.arange(len(unmet)), unmet)
        order = torch.randperm(images, generator=torch.Generator().manual_seed(self._seed))
        self._seed += 1
        return classes[order]
