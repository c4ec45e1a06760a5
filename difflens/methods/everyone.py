"""The edits of all classes at once, in every image: nobody is moved to a class of their own."""

from collections.abc import Sequence
from copy import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.methods.base import Mitigation
from difflens.methods.sae_features import SaeFeatureMitigation
from difflens.vocabulary import EVERY_CLASS, UNTOUCHED


class EveryClassMitigation(Mitigation):
    """`edit` towards every class, one after the other, on the same codes; the released code's `multiply_all`.

    A latent of one class is changed as that class's edit changes it. One that several classes share is scaled by the
    product of their strengths, raised by the sum, or pinned by the last class.

    Args:
        edit: a method that acts on the target class's own latents; under `contrast` the classes would undo each other.
    """

    def __init__(self, edit: SaeFeatureMitigation) -> None:
        super().__init__(edit.attribute, site=edit.site, update=edit.update, window=edit.window)
        self.edit = edit

    @property
    def neutral(self) -> float:
        """The strength that changes nothing."""
        return self.edit.neutral

    def aims(
        self, targets: Int[Tensor, "images"], shown: Int[Tensor, "images held"], prompts: Sequence[str] | None
    ) -> Int[Tensor, "images"]:
        """See `Mitigation.aims`: 0 for the images that are edited."""
        return torch.where(targets == EVERY_CLASS, 0, UNTOUCHED)

    def with_strength(self, strength: Float[Tensor, "classes"]) -> "EveryClassMitigation":
        """See `Mitigation.with_strength`."""
        other = copy(self)
        other.edit = self.edit.with_strength(strength)
        return other

    def __call__(
        self, h: Float[Tensor, "images channels height width"], step: int, targets: Int[Tensor, "images"]
    ) -> Float[Tensor, "images channels height width"]:
        """See `Mitigation`."""
        latents = self.edit.statistics.latents.to(h.device)
        codes, shown = self.edit.sae.codes_of_latents(h.float(), latents), self.edit.shown(h, step)
        total = torch.zeros_like(codes)
        for index in range(len(self.attribute.classes)):
            own = torch.where(targets >= 0, index, UNTOUCHED)
            total = total + self.edit.change(codes + total, step, own, shown=shown)
        return self.edit.write(h, total, targets, latents)
