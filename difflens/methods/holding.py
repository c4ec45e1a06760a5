"""Edits of one attribute that hold the others where they are, whatever method makes the edits."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from difflens.methods.base import SiteEdit
from difflens.probes.base import Probe
from difflens.vocabulary import UNTOUCHED, Attribute, PerImage

Same = TypeVar("Same", bound="EditWrapper")


class EditWrapper(SiteEdit):
    """An edit around another one, which keeps its strengths and its coordinates."""

    def __init__(self, edit: SiteEdit) -> None:
        super().__init__(edit.attribute, site=edit.site, update=edit.update, window=edit.window)
        self.edit, self.neutral, self.focus, self.release = edit, edit.neutral, edit.focus, edit.release

    @property
    def strength(self) -> Float[Tensor, "slots"]:
        """That of the edit."""
        return self.edit.strength

    def for_prompts(self: Same, prompts: Sequence[str]) -> Same:
        """See `Steering.for_prompts`."""
        return self._wrapping(self.edit.for_prompts(prompts))

    def with_strength(self: Same, strength: Float[Tensor, "slots"]) -> Same:
        """See `Steering.with_strength`."""
        return self._wrapping(self.edit.with_strength(strength))

    def _wrapping(self: Same, edit: SiteEdit) -> Same:
        other = copy(self)
        other.edit = edit
        return other

    def read(self, h: Tensor) -> Tensor:
        """The coordinates of the edit."""
        return self.edit.read(h)

    def change(self, z: Tensor, step: int, target: Tensor, strength: Tensor, shown: Tensor | None = None) -> Tensor:
        """The edit's own."""
        return self.edit.change(z, step, target, strength, shown)

    def write(self, h: Tensor, delta: Tensor, touched: Tensor) -> Tensor:
        """The edit's own."""
        return self.edit.write(h, delta, touched)


class Holding(EditWrapper):
    """`edit`, and beside it an edit of each other attribute towards the class that the unedited image shows.

    An edit early in the trajectory also moves what is decided later. Each held edit has a gate, so that it acts only while
    its own attribute drifts. All changes are read off the same coordinates, and their sum is kept within their limits.

    Args:
        edit: of the attribute under study.
        holders: gated edits, one per other attribute.
        ratio: strength of the held edits, as a multiple of the edit's own (`SiteEdit.dose`): a neutral edit holds nothing
            and changes no bit.
    """

    def __init__(self, edit: SiteEdit, holders: Sequence[SiteEdit], *, ratio: float) -> None:
        super().__init__(edit)
        self.edit, *self.holders = edit.beside(holders)
        self.ratio = ratio
        self.held: tuple[Attribute, ...] = tuple(holder.attribute for holder in holders)  # type: ignore[misc]

    def delta(self, z: Tensor, h: Tensor, step: int, images: PerImage) -> Tensor:
        """The edit's change and, weighted by its distance from neutral, those of all holders."""
        total = self.edit.delta(z, h, step, images)
        weight = self.edit.dose(images).to(z) * self.ratio
        for holder in self.holders:
            shown = images.shown[holder.attribute.name]
            # Only what the edit moves can drift; `shown` may be negative too, where nobody knows the class.
            back = replace(images, target=torch.where(images.target >= 0, shown, UNTOUCHED))
            total = total + weight[:, None, None, None] * holder.delta(z, h, step, back)
        # Each change keeps its limits by itself, their sum need not.
        return self.edit.limit(z, total)


class NullSpace(EditWrapper):
    """`edit` without what the probes of other attributes would see of it: their logits of this very step stay as they are.

    h′ = h + (I − Q Qᵀ) Δh with Q an orthonormal basis of the differences of the probes' rows at the step. Nothing need be
    known of the image.

    Args:
        edit: of the attribute under study.
        probes: linear, of the other attributes.

    Raises:
        ValueError: a probe is not linear.
    """

    def __init__(self, edit: SiteEdit, probes: Sequence[Probe]) -> None:
        super().__init__(edit)
        self.probes = tuple(probes)
        self._bases: dict[int, Tensor] = {}
        if any(probe.affine_layer(0) is None for probe in probes):
            raise ValueError(
                "mitigation.hold.by=null_space reads linear classifiers; use probe=linear, or hold.by=contrast."
            )

    def __call__(
        self, h: Float[Tensor, "images channels height width"], step: int, images: PerImage
    ) -> Float[Tensor, "images channels height width"]:
        """The edited activations; rows that the edit leaves as they are come back bit for bit."""
        edited = self.edit(h, step, images)
        basis = self._basis(step, h.device)
        change = (edited.float() - h.float()).flatten(1)
        kept = (change - (change @ basis) @ basis.T).view(h.shape)
        # Where the edit did nothing h itself is given back: the projection's rounding would change bits.
        touched = (edited != h).flatten(1).any(1)
        return torch.where(touched[:, None, None, None], (h.float() + kept).to(h.dtype), h)

    def _basis(self, step: int, device: torch.device) -> Float[Tensor, "features rank"]:
        if step not in self._bases:
            layers = [probe.affine_layer(step) for probe in self.probes]
            rows = [layer[0].double() - layer[0].double().mean(0) for layer in layers if layer is not None]
            # A softmax does not see what all of its classes have in common: the last row follows from the others.
            self._bases[step] = torch.linalg.qr(torch.cat([each[:-1] for each in rows]).T)[0].float()
        return self._bases[step].to(device)
