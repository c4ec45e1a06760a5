"""Target classes handed out a few at a time, so that all of them together meet the target distribution."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.methods.assignment import largest_remainder
from difflens.vocabulary import UNTOUCHED


def fewest_pushes(target: Float[Tensor, "classes"], natural: Float[Tensor, "classes"]) -> Float[Tensor, "parts"]:
    """How many images to push where nobody sees which class they would show: those of all classes, then the untouched.

    Of n images, u·n stay as they are and q_c·n are pushed towards class c, whatever they would show, so that the target is
    expected: q_c = target_c − u·natural_c, with u as large as no negative q allows. A class that the model shows too often
    gets no push.

    Args:
        target: share of each class asked for.
        natural: share of each class among the model's own images.
    """
    target, natural = target.double() / target.double().sum(), natural.double() / natural.double().sum()
    untouched = (target / natural).nan_to_num(torch.inf, posinf=torch.inf).min().clamp_max(1)
    return torch.cat([(target - untouched * natural).clamp_min(0), untouched[None]])


class Quota:
    """Gives the images of each call their classes: after n images in all, the counts are the largest-remainder quota of n.

    Where a larger n would take a class's image back (the Alabama paradox, from three unequal shares on), the counts come as
    near to the shares as they can.

    Args:
        target: share of each class; `untouched` says whether its last entry is that of images which no class is given.
        seed: shuffles who gets which class; every call is shuffled anew.
    """

    def __init__(self, target: Float[Tensor, "parts"], *, seed: int, untouched: bool = False) -> None:
        self._target, self._seed = target.double() / target.double().sum(), seed
        self._given = torch.zeros(len(target), dtype=torch.int64)
        self._untouched = len(target) - 1 if untouched else None

    def __call__(self, images: int) -> Int[Tensor, "images"]:
        """The classes of so many further images, `UNTOUCHED` for those without one."""
        wanted = self._given.sum() + images
        unmet = (largest_remainder(self._target, int(wanted)) - self._given).clamp_min(0)
        while unmet.sum() > images:
            ahead = (self._given + unmet - wanted * self._target).masked_fill(unmet == 0, -torch.inf)
            unmet[ahead.argmax()] -= 1
        self._given += unmet
        classes = torch.repeat_interleave(torch.arange(len(unmet)), unmet)
        order = torch.randperm(images, generator=torch.Generator().manual_seed(self._seed))
        self._seed += 1
        return (
            classes[order] if self._untouched is None else classes.where(classes != self._untouched, UNTOUCHED)[order]
        )
