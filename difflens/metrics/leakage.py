"""Leakage: what a mitigation of one attribute does to all the others."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from difflens.metrics.judges import faces_found, missing_faces
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

    leakage_flips: Tensor
    leakage_flips_edited: Tensor
    leakage_shifts: Tensor
    leakage_changes: Tensor
    leakage_pairs: Tensor
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
        missing_faces(torch.ones(0, dtype=torch.bool), policy=missing)
        if target not in classes or len(classes) < 2:
            raise ValueError(f"leakage from {target!r} needs its logits and another attribute's, got {list(classes)}.")
        self.target, self.missing = target, missing
        self.classes = {name: tuple(names) for name, names in classes.items()}
        self.register_buffer("before", self._join(before), persistent=False)
        if len(self.before) != len(image_ids):
            raise ValueError(f"{len(self.before)} rows of logits came with {len(image_ids)} image ids.")
        attributes, width = len(self.classes), self.before.shape[1]
        self.add_sum("leakage_flips", attributes, dtype=torch.int64)
        self.add_sum("leakage_flips_edited", attributes, dtype=torch.int64)
        self.add_sum("leakage_shifts", width, dtype=torch.int64)
        self.add_sum("leakage_changes", width)
        self.add_sum("leakage_pairs", 3, dtype=torch.int64)

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
        old = self.before[rows]
        found = faces_found(old) & faces_found(new)
        absent = missing_faces(found, policy=self.missing)
        old, new, edited = old[found], new[found], edited[found]
        chosen = self._one_hot(new) - self._one_hot(old)
        flips = torch.stack([part.any(-1) for part in self._split(chosen)])
        self.leakage_flips = self.leakage_flips + flips.sum(1)
        self.leakage_flips_edited = self.leakage_flips_edited + (flips & edited).sum(1)
        self.leakage_shifts = self.leakage_shifts + chosen.sum(0)
        self.leakage_changes = self.leakage_changes + (new - old).abs().sum(0)
        self.leakage_pairs = self.leakage_pairs + self.leakage_pairs.new_tensor([len(old), int(edited.sum()), absent])

    def compute(self) -> LeakageResult:
        """Leakage into each other attribute.

        Raises:
            ValueError: an original has no mitigated counterpart, or no pair has faces.
        """
        self.require_all_rows()
        n, edited, missing = self.leakage_pairs.tolist()
        if n == 0:
            raise ValueError(f"leakage from {self.target!r} needs a pair with faces, got none ({missing} without).")
        changes = dict(zip(self.classes, self._split(self.leakage_changes / n), strict=True))
        moved = changes.pop(self.target)
        others = {name: self._attribute(name, _ratio(moved, change)) for name, change in changes.items()}
        return LeakageResult(others, _ratio(moved, torch.cat([*changes.values()])), n, edited, missing)

    def _attribute(self, name: str, precision: float) -> AttributeLeakage:
        index = list(self.classes).index(name)
        n, edited, _ = self.leakage_pairs.tolist()
        flips_edited = int(self.leakage_flips_edited[index]) / edited if edited else math.nan
        shift = (self._split(self.leakage_shifts)[index] / n).tolist()
        shifts = dict(zip(self.classes[name], shift, strict=True))
        return AttributeLeakage(int(self.leakage_flips[index]) / n, flips_edited, shifts, precision)

    def _join(self, logits: Mapping[str, Tensor]) -> Tensor:
        """Logits of all attributes side by side [N, ΣC]."""
        for name, names in self.classes.items():
            shape = list(logits[name].shape) if name in logits else None
            if shape is None or shape[1:] != [len(names)]:
                raise ValueError(f"logits of {name!r} must be [N, {len(names)}], got {shape or 'none'}.")
        return torch.cat([logits[name].double() for name in self.classes], dim=1)

    def _split(self, joined: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = torch.split(joined, [len(names) for names in self.classes.values()], dim=-1)
        return parts

    def _one_hot(self, logits: Tensor) -> Tensor:
        parts = self._split(logits)
        return torch.cat([torch.nn.functional.one_hot(part.argmax(-1), part.shape[-1]) for part in parts], dim=1)


def _ratio(moved: Tensor, others: Tensor) -> float:
    return float(moved.mean() / others.mean())
