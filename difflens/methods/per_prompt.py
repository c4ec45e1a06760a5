"""One edit at a strength of its own for every prompt and class."""

from collections.abc import Sequence
from copy import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.methods.base import Mitigation
from difflens.vocabulary import UNTOUCHED, Attribute

SPAN = 1 << 20
"""What an image's prompt counts in its target: more than any target of the edit itself."""


class PerPromptMitigation(Mitigation):
    """`edit` at the strength of each image's prompt and class; its targets come from `aims`.

    Strengths [P·C] hold the classes of the first prompt, then those of the second. An image of any other prompt gets, per
    class, the mean over the prompts whose strength is not neutral.

    Args:
        edit: any method.
        prompts: the P prompts.
    """

    def __init__(self, edit: Mitigation, prompts: Sequence[str]) -> None:
        super().__init__(edit.attribute, site=edit.site, update=edit.update, window=edit.window)
        self.prompts, self._edits = tuple(prompts), (edit,) * (len(prompts) + 1)

    @property
    def neutral(self) -> float:
        """The strength that changes nothing."""
        return self._edits[0].neutral

    @property
    def held(self) -> tuple[Attribute, ...]:
        """See `Mitigation.held`."""
        return self._edits[0].held

    def aims(
        self, targets: Int[Tensor, "images"], shown: Int[Tensor, "images held"], prompts: Sequence[str] | None
    ) -> Int[Tensor, "images"]:
        """See `Mitigation.aims`: what the edit itself is called with, and the prompt of each image."""
        assert prompts is not None
        number = {prompt: i for i, prompt in enumerate(self.prompts)}
        rows = torch.tensor([number.get(prompt, len(self.prompts)) for prompt in prompts], dtype=torch.int64)
        inner = self._edits[0].aims(targets, shown, prompts)
        return torch.where(targets >= 0, rows * SPAN + inner, UNTOUCHED)

    def with_strength(self, strength: Float[Tensor, "classes"]) -> "PerPromptMitigation":
        """The same at strengths [P·C]."""
        table = strength.unflatten(0, (len(self.prompts), -1))
        used = (table != self.neutral).to(table)
        usual = self.neutral + ((table - self.neutral) * used).sum(0) / used.sum(0).clamp_min(1)
        other = copy(self)
        other._edits = tuple(self._edits[0].with_strength(row) for row in (*table, usual))
        return other

    def __call__(
        self, h: Float[Tensor, "images channels height width"], step: int, targets: Int[Tensor, "images"]
    ) -> Float[Tensor, "images channels height width"]:
        """See `Mitigation`; every edit is given all rows, so that no image depends on its neighbours' prompts."""
        rows, edited = torch.where(targets >= 0, targets // SPAN, UNTOUCHED), h
        for row in rows.unique().tolist():
            if row >= 0:
                own = rows == row
                made = self._edits[row](h, step, torch.where(own, targets % SPAN, UNTOUCHED))
                edited = torch.where(own[:, None, None, None], made, edited)
        return edited
