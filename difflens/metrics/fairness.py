"""Fairness discrepancy of a set of images as a metric; and how many of them a judge places outside of the classes studied."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from difflens.judges.protocol import faces_found, missing_faces, other_share
from difflens.metrics.functional import (
    chance_discrepancy,
    discrepancy,
    maximum_discrepancy,
    unbiased_squared_discrepancy,
    valid_target,
    wilson_interval,
)
from difflens.metrics.sums import SumMetric


class Share(NamedTuple):
    """Share of the images whose most probable class this is, with its 95 % Wilson interval."""

    share: float
    low: float
    high: float


class FairnessResult(NamedTuple):
    """Fairness of n judged images; `missing` more had no face and are in none of the other numbers."""

    fd: float
    fd_hard: float
    fd_chance: float
    fd_squared_unbiased: float
    fd_maximum: float
    probabilities: dict[str, float]
    shares: dict[str, Share]
    n: int
    missing: int


class FairnessDiscrepancy(SumMetric):
    """FD, the distance ‖p − q‖₂ of the classes' shares p among all images from a target q: 0 is fair.

    >>> metric = FairnessDiscrepancy(("female", "male"))
    >>> metric.update(torch.tensor([[9.0, 0.0], [9.0, 0.0], [9.0, 0.0], [0.0, 9.0]]))  # a judge's logits
    >>> result = metric.compute()
    >>> round(result.fd_hard, 3), result.shares["female"].share
    (0.354, 0.75)

    Args:
        classes: the attribute's class names, in the order of the logits' columns (see `judges.select_classes`).
        target: q over the classes, uniform if None.
        missing: what to do with images without a face.

    Raises:
        ValueError: the target does not fit the classes, or the policy is unknown.
    """

    fairness_probabilities: Tensor
    fairness_counts: Tensor
    fairness_missing: Tensor
    target: Tensor

    def __init__(
        self, classes: Sequence[str], target: Num[Tensor, "classes"] | None = None, *, missing: str = "error"
    ) -> None:
        super().__init__()
        # On no image at all: an unknown policy is told now, not with the first missing face.
        missing_faces(torch.ones(0, dtype=torch.bool), policy=missing)
        self.classes, self.missing = tuple(classes), missing
        size = len(self.classes)
        q = torch.ones(size).double() / size if target is None else target
        if q.shape != (size,):
            raise ValueError(f"a target of {q.shape[-1]} shares was given for {size} classes {self.classes}.")
        self.register_buffer("target", valid_target(q), persistent=False)
        self.add_sum("fairness_probabilities", size)
        self.add_sum("fairness_counts", size, dtype=torch.int64)
        self.add_sum("fairness_missing", dtype=torch.int64)

    def update(self, logits: Float[Tensor, "images classes"], *, probabilities: bool = False) -> None:
        """Adds logits [N, C], or `probabilities`, such as of product classes; a row of NaN is an image without a face."""
        if logits.ndim != 2 or logits.shape[1] != len(self.classes):
            raise ValueError(f"logits of {self.classes} are [N, {len(self.classes)}], got {list(logits.shape)}.")
        # Counted, never filled in: an image that shows no face belongs to no class, and leaving it out unsaid would
        # flatter an edit that destroys faces.
        found = faces_found(logits)
        missing_faces(found, policy=self.missing)
        seen = logits[found].to(self.target)
        # In double before the softmax: so the mean of many images keeps its digits.
        shares = seen if probabilities else seen.softmax(-1)
        self.fairness_probabilities = self.fairness_probabilities + torch.ones(len(seen)).to(seen) @ shares
        self.fairness_counts = self.fairness_counts + seen.argmax(-1).bincount(minlength=len(self.classes))
        self.fairness_missing = self.fairness_missing + (~found).sum().to(self.fairness_missing)

    def compute(self) -> FairnessResult:
        """FD with everything needed to read it (ValueError: no image has a face)."""
        counts, target, n = self.fairness_counts.cpu(), self.target.cpu(), int(self.fairness_counts.sum())
        if n == 0:
            raise ValueError(f"no image was judged for {self.classes} ({int(self.fairness_missing)} without a face).")
        # Intervals, chance level and the unbiased square hold for counted images, not for mean probabilities.
        mean, shares, bounds = self.fairness_probabilities.cpu() / n, counts.double() / n, wilson_interval(counts, n)
        intervals = zip(shares.tolist(), bounds.low.tolist(), bounds.high.tolist(), strict=True)
        return FairnessResult(
            fd=float(discrepancy(mean, target)),
            fd_hard=float(discrepancy(shares, target)),
            fd_chance=float(chance_discrepancy(n, target)),
            fd_squared_unbiased=float(unbiased_squared_discrepancy(shares, target, n=n)),
            fd_maximum=float(maximum_discrepancy(target)),
            probabilities=dict(zip(self.classes, mean.tolist(), strict=True)),
            shares={name: Share(*interval) for name, interval in zip(self.classes, intervals, strict=True)},
            n=n,
            missing=int(self.fairness_missing),
        )


class Others(NamedTuple):
    """Of n images with a face: how many have their most probable class outside, and the mean probability outside.

    FD is measured on all n, conditionally on the attribute's classes (see `select_classes`).
    """

    images: int
    probability: float
    n: int


def count_others(logits: Float[Tensor, "images all"], columns: Int[Tensor, "classes"]) -> Others:
    """What lies outside `columns` of a judge's logits [N, all its classes]; rows of NaN are images without a face.

    Raises:
        ValueError: no image has a face.
    """
    seen = logits[faces_found(logits)]
    if len(seen) == 0:
        raise ValueError(f"none of {len(logits)} images has a face; look at them, or change the judge's `faces`.")
    # Over all of the judge's classes: restricted to the attribute's, every image would fall into one of them.
    outside = (seen.argmax(-1)[:, None] != columns.to(seen.device)).all(-1)
    return Others(int(outside.sum()), other_share(logits, columns), len(seen))
