"""Leakage: what a mitigation of one attribute does to all the others."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from difflens.judges.protocol import faces_found, missing_faces
from difflens.metrics.functional import editing_precision, flip_rate, share_shift
from difflens.metrics.sums import RowMetric


class AttributeLeakage(NamedTuple):
    """Leakage into one other attribute.

    `flip_rate` is over all judged pairs and `flip_rate_edited` over the edited ones (NaN without any); `shift` is the
    share after minus before, per class; `editing_precision` is mean |Δ target logit| / mean |Δ logit here|.
    """

    flip_rate: float
    flip_rate_edited: float
    shift: dict[str, float]
    editing_precision: float


class LeakageResult(NamedTuple):
    """Leakage into every other attribute; `editing_precision` takes all their logits together."""

    attributes: dict[str, AttributeLeakage]
    editing_precision: float
    n: int
    edited: int
    missing: int


class Leakage(RowMetric):
    """Compares a judge's logits of the same image id with and without mitigation.

    >>> classes = {"gender": ("female", "male"), "age": ("young", "old")}
    >>> before = {"gender": torch.tensor([[0.0, 4.0], [0.0, 4.0]]), "age": torch.tensor([[1.0, 0.0], [1.0, 0.0]])}
    >>> after = {"gender": torch.tensor([[4.0, 0.0], [4.0, 0.0]]), "age": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}
    >>> metric = Leakage("gender", before, torch.tensor([0, 1]), classes=classes)
    >>> metric.update(after, torch.tensor([0, 1]), edited=torch.tensor([True, True]))
    >>> metric.compute().attributes["age"].flip_rate
    0.5

    Logits are compared as the judge gives them; untouched images change neither mean, so they leave the ratio as it is.

    Args:
        target: the mitigated attribute.
        before: attribute → logits [n, C] of the unmitigated images, the target's and those of all others.
        image_ids: their ids [n].
        classes: attribute → its class names, in the order of the logits' columns (`Judge.classes`).
        missing: what to do with pairs in which an image has no face (rows of NaN).

    Raises:
        ValueError: the target is not among the attributes, there is no other one, or shapes do not agree.
    """

    leakage_after: Tensor
    leakage_edited: Tensor
    before: Tensor

    def __init__(
        self,
        target: str,
        before: Mapping[str, Float[Tensor, "images _"]],
        image_ids: Int[Tensor, "images"],
        *,
        classes: Mapping[str, Sequence[str]],
        missing: str = "error",
    ) -> None:
        super().__init__(image_ids, name="leakage")
        # An unknown policy is told now, not with the first missing face.
        missing_faces(torch.ones(0, dtype=torch.bool), policy=missing)
        if target not in classes or len(classes) < 2:
            raise ValueError(f"leakage from {target!r} needs its logits and another attribute's, got {list(classes)}.")
        self.target, self.missing = target, missing
        self.classes = {name: tuple(names) for name, names in classes.items()}
        self.register_buffer("before", self._join(before), persistent=False)
        if len(self.before) != len(image_ids):
            raise ValueError(f"{len(self.before)} rows of logits came with {len(image_ids)} image ids.")
        self.add_sum("leakage_after", *self.before.shape)
        self.add_sum("leakage_edited", len(image_ids), dtype=torch.int64)

    def update(
        self,
        after: Mapping[str, Float[Tensor, "images _"]],
        image_ids: Int[Tensor, "images"],
        *,
        edited: Bool[Tensor, "images"],
    ) -> None:
        """Adds the logits of mitigated images with these ids [N]; `edited` says which ones the mitigation acted on.

        Raises:
            ValueError: an id has no original or came before, an attribute is absent, or so is a face under `error`.
        """
        new, edited = self._join(after).to(self.before), edited.to(self.before.device)
        rows = self.take_rows(image_ids, new, edited)
        # Without a face on either side nothing has been kept and nothing flipped: a pair counts whole or not at all.
        missing_faces(faces_found(self.before[rows]) & faces_found(new), policy=self.missing)
        self.leakage_after = self.leakage_after.index_add(0, rows, new)
        self.leakage_edited = self.leakage_edited.index_add(0, rows, edited.long())

    def compute(self) -> LeakageResult:
        """Leakage into each other attribute.

        Raises:
            ValueError: an original has no mitigated counterpart, or no pair has faces.
        """
        n = self.require_all_rows()
        found = faces_found(self.before) & faces_found(self.leakage_after)
        missing = n - int(found.sum())
        if missing == n:
            raise ValueError(f"leakage from {self.target!r} needs a pair with faces, got none ({missing} without).")
        old, new = self.before[found], self.leakage_after[found]
        edited = self.leakage_edited[found].bool()
        changes = dict(zip(self.classes, self._split(new - old), strict=True))
        # The edit's own purpose is no leakage; it is what all other changes are measured against.
        moved = changes.pop(self.target)
        before, after = (dict(zip(self.classes, self._split(logits), strict=True)) for logits in (old, new))
        others = {
            name: self._attribute(name, before[name], after[name], edited, float(editing_precision(moved, change)))
            for name, change in changes.items()
        }
        together = float(editing_precision(moved, torch.cat([*changes.values()], dim=1)))
        return LeakageResult(others, together, len(old), int(edited.sum()), missing)

    def _attribute(
        self, name: str, before: Tensor, after: Tensor, edited: Tensor, precision: float
    ) -> AttributeLeakage:
        old, new = before.argmax(-1), after.argmax(-1)
        shift = share_shift(old, new, classes=len(self.classes[name])).tolist()
        return AttributeLeakage(
            float(flip_rate(old, new)),
            # Beside the rate over all: where few images are edited, that one is small whatever the edit does.
            float(flip_rate(old[edited], new[edited])),
            dict(zip(self.classes[name], shift, strict=True)),
            precision,
        )

    def _join(self, logits: Mapping[str, Tensor]) -> Tensor:
        """Logits of all attributes side by side [N, ΣC]."""
        for name, names in self.classes.items():
            shape = list(logits[name].shape) if name in logits else None
            if shape is None or shape[1:] != [len(names)]:
                raise ValueError(f"logits of {name!r} must be [N, {len(names)}], got {shape or 'none'}.")
        # Side by side, so that one state of fixed shape holds any number of attributes.
        return torch.cat([logits[name].double() for name in self.classes], dim=1)

    def _split(self, joined: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = torch.split(joined, [len(names) for names in self.classes.values()], dim=-1)
        return parts
