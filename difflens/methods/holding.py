"""An edit of one attribute that holds the others where they are."""

from collections.abc import Sequence
from copy import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.methods.base import Mitigation
from difflens.methods.sae_features import SaeFeatureMitigation
from difflens.vocabulary import UNTOUCHED, Attribute


class HoldingMitigation(Mitigation):
    """`edit`, and beside it an edit of each other attribute towards the class that the unedited image shows.

    An edit early in the trajectory also moves what is decided later. Each held edit has a gate, so that it acts only while
    its own attribute drifts. All Δz are read off the same codes, added up, and never take a code below zero.

    Args:
        edit: of the attribute under study.
        held: gated edits by the same SAE, one per other attribute.
        ratio: strength of the held edits, as a multiple of how far the strength of `edit` for an image's class lies from
            neutral: a neutral edit holds nothing and changes no bit.
    """

    def __init__(self, edit: SaeFeatureMitigation, held: Sequence[SaeFeatureMitigation], *, ratio: float) -> None:
        super().__init__(edit.attribute, site=edit.site, update=edit.update, window=edit.window)
        self.edit, self._holders, self.ratio = edit, tuple(held), ratio
        self._latents = torch.cat([member.statistics.latents for member in (edit, *held)]).unique()
        self._columns = [torch.searchsorted(self._latents, member.statistics.latents) for member in (edit, *held)]

    @property
    def neutral(self) -> float:
        """The strength that changes nothing."""
        return self.edit.neutral

    @property
    def held(self) -> tuple[Attribute, ...]:
        """See `Mitigation.held`."""
        return tuple(holder.attribute for holder in self._holders)

    def with_strength(self, strength: Float[Tensor, "classes"]) -> "HoldingMitigation":
        """See `Mitigation.with_strength`."""
        other = copy(self)
        other.edit = self.edit.with_strength(strength)
        return other

    def aims(
        self, targets: Int[Tensor, "images"], shown: Int[Tensor, "images held"], prompts: Sequence[str] | None = None
    ) -> Int[Tensor, "images"]:
        """See `Mitigation.aims`: one number that stands for the target and the shown class of every held attribute."""
        number = torch.zeros_like(targets)
        for labels, attribute in zip(shown.T.flip(0), reversed(self.held), strict=True):
            number = number * (len(attribute.classes) + 1) + labels + 1
        return torch.where(targets >= 0, number * len(self.attribute.classes) + targets, UNTOUCHED)

    def __call__(
        self, h: Float[Tensor, "images channels height width"], step: int, targets: Int[Tensor, "images"]
    ) -> Float[Tensor, "images channels height width"]:
        """See `Mitigation`."""
        own, shown = self._parts(targets)
        codes = self.edit.codes(h, self._latents)
        distance = (self.edit.strength.to(codes) - self.neutral).abs()[own.clamp_min(0)] * self.ratio
        total = torch.zeros_like(codes)
        members, weights = (self.edit, *self._holders), (torch.ones_like(distance), *[distance] * len(self._holders))
        for member, columns, aim, weight in zip(members, self._columns, (own, *shown), weights, strict=True):
            delta = member.change(codes[:, columns], step, aim, shown=member.shown(h, step))
            total[:, columns] += weight[:, None, None, None] * delta
        return self.edit.write(h, torch.maximum(total, -codes), own, self._latents)

    def _parts(self, targets: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The target class of each image, and the class it shows of each held attribute: the inverse of `aims`."""
        rest, sizes = targets.clamp_min(0), [len(self.attribute.classes), *(len(a.classes) + 1 for a in self.held)]
        digits = []
        for size in sizes:
            digits.append(rest % size)
            rest = rest // size
        own, *shown = (torch.where(targets >= 0, digit - int(i > 0), UNTOUCHED) for i, digit in enumerate(digits))
        return own, shown
