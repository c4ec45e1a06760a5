"""Fairness discrepancy as metrics: of one attribute, per prompt, and over product classes."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from difflens.judges.protocol import faces_found, missing_faces
from difflens.metrics.functional import (
    chance_discrepancy,
    discrepancy,
    maximum_discrepancy,
    product_probabilities,
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


class PerPromptFairnessResult(NamedTuple):
    """Mean of the prompts' soft and hard FD, the FD of all images pooled, and each prompt's own result."""

    fd_mean_over_prompts: float
    fd_hard_mean_over_prompts: float
    pooled: FairnessResult
    prompts: dict[str, FairnessResult]


class _Tally(SumMetric):
    """Sums of probabilities and counts of most probable classes, for one group of images or several."""

    fairness_probabilities: Tensor
    fairness_counts: Tensor
    fairness_missing: Tensor
    target: Tensor

    def __init__(self, classes: Sequence[str], target: Tensor | None, *, missing: str, groups: int) -> None:
        super().__init__()
        missing_faces(torch.ones(0, dtype=torch.bool), policy=missing)
        self.classes, self.missing = tuple(classes), missing
        size = len(self.classes)
        asked = torch.ones(size).double() / size if target is None else target
        if asked.shape not in ((size,), (groups, size)):
            raise ValueError(f"a target of {asked.shape[-1]} shares was given for {size} classes {self.classes}.")
        q = torch.stack([valid_target(each) for each in asked.expand(groups, size)])
        self.register_buffer("target", q, persistent=False)
        self.add_sum("fairness_probabilities", groups, size)
        self.add_sum("fairness_counts", groups, size, dtype=torch.int64)
        self.add_sum("fairness_missing", groups, dtype=torch.int64)

    def _add(self, probabilities: Tensor, labels: Tensor, *, found: Tensor, groups: Tensor) -> None:
        """Adds one batch; rows of `probabilities` and `labels` without a face are not read."""
        missing_faces(found, policy=self.missing)
        member = torch.nn.functional.one_hot(groups.long(), len(self.fairness_missing))
        present, absent = member[found], member[~found]
        hard = torch.nn.functional.one_hot(labels[found], len(self.classes))
        self.fairness_probabilities = self.fairness_probabilities + present.double().mT @ probabilities[found]
        # Integer matrix products do not exist on CUDA.
        self.fairness_counts = self.fairness_counts + (present[:, :, None] * hard[:, None, :]).sum(0)
        self.fairness_missing = self.fairness_missing + absent.sum(0)

    def _result(self, probabilities: Tensor, counts: Tensor, missing: Tensor, target: Tensor) -> FairnessResult:
        n = int(counts.sum())
        if n == 0:
            raise ValueError(f"no image was judged for {self.classes} ({int(missing)} without a face).")
        mean, shares, target = probabilities.cpu() / n, counts.cpu().double() / n, target.cpu()
        low, high = wilson_interval(counts.cpu(), n)
        bounds = zip(shares.tolist(), low.tolist(), high.tolist(), strict=True)
        return FairnessResult(
            fd=float(discrepancy(mean, target)),
            fd_hard=float(discrepancy(shares, target)),
            fd_chance=float(chance_discrepancy(n, target)),
            fd_squared_unbiased=float(unbiased_squared_discrepancy(shares, target, n=n)),
            fd_maximum=float(maximum_discrepancy(target)),
            probabilities=dict(zip(self.classes, mean.tolist(), strict=True)),
            shares={name: Share(*bound) for name, bound in zip(self.classes, bounds, strict=True)},
            n=n,
            missing=int(missing),
        )

    def _pooled(self) -> FairnessResult:
        """All images together, held to the mean of their groups' targets."""
        images = (self.fairness_counts.sum(1) + self.fairness_missing).double()
        # Groups of one target keep it bit for bit.
        shared = bool((self.target == self.target[0]).all()) or not bool(images.any())
        target = self.target[0] if shared else (images / images.sum())[None] @ self.target
        return self._result(
            self.fairness_probabilities.sum(0),
            self.fairness_counts.sum(0),
            self.fairness_missing.sum(),
            target.flatten(),
        )


class FairnessDiscrepancy(_Tally):
    """FD of one attribute over all images.

    Args:
        classes: the attribute's class names, in the order of the logits' columns (see `judges.select_classes`).
        target: q over the classes, uniform if None.
        missing: what to do with images without a face.

    Raises:
        ValueError: the target does not fit the classes, or the policy is unknown.
    """

    def __init__(
        self, classes: Sequence[str], target: Num[Tensor, "classes"] | None = None, *, missing: str = "error"
    ) -> None:
        super().__init__(classes, target, missing=missing, groups=1)

    def update(self, logits: Float[Tensor, "images classes"]) -> None:
        """Adds logits [N, C] (log-probabilities serve as well); a row of NaN is an image without a face."""
        logits = _columns(logits, self.classes).to(self.target.device)
        groups = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        self._add(logits.double().softmax(-1), logits.argmax(-1), found=faces_found(logits), groups=groups)

    def compute(self) -> FairnessResult:
        """FD with everything needed to read it."""
        return self._pooled()


class PerPromptFairnessDiscrepancy(_Tally):
    """FD of one attribute per prompt, its mean over prompts, and pooled over all images.

    Args:
        classes: as in `FairnessDiscrepancy`.
        target: as in `FairnessDiscrepancy`, or one per prompt [P, C].
        prompts: the prompts, each at least once judged before `compute`.
        missing: what to do with images without a face.
    """

    def __init__(
        self,
        classes: Sequence[str],
        target: Num[Tensor, "*prompts classes"] | None = None,
        *,
        prompts: Sequence[str],
        missing: str = "error",
    ) -> None:
        super().__init__(classes, target, missing=missing, groups=len(prompts))
        self.prompts = tuple(prompts)

    def update(self, logits: Float[Tensor, "images classes"], prompts: Int[Tensor, "images"]) -> None:
        """Adds logits [N, C] of images made from the prompts with these indices [N]."""
        logits = _columns(logits, self.classes).to(self.target.device)
        if prompts.shape != logits.shape[:1] or bool(((prompts < 0) | (prompts >= len(self.prompts))).any()):
            raise ValueError(
                f"each of {len(logits)} images needs a prompt in 0…{len(self.prompts) - 1}, got {prompts}."
            )
        self._add(
            logits.double().softmax(-1), logits.argmax(-1), found=faces_found(logits), groups=prompts.to(logits.device)
        )

    def compute(self) -> PerPromptFairnessResult:
        """Both aggregates, under different names."""
        states = zip(self.fairness_probabilities, self.fairness_counts, self.fairness_missing, self.target, strict=True)
        results = {prompt: self._result(*state) for prompt, state in zip(self.prompts, states, strict=True)}
        soft, hard = ([getattr(r, field) for r in results.values()] for field in ("fd", "fd_hard"))
        return PerPromptFairnessResult(
            math.fsum(soft) / len(soft), math.fsum(hard) / len(hard), pooled=self._pooled(), prompts=results
        )


class IntersectionalFairnessDiscrepancy(_Tally):
    """FD over the product classes of several attributes, each named like `female × old`.

    Soft FD takes the judge's answers as independent given the image: the joint probability is the product.

    Args:
        attributes: attribute → its class names; the first attribute varies slowest.
        target: joint target [C_1, …, C_k], uniform if None; for marginal targets give their outer product.
        missing: what to do with images for which an attribute's row is NaN.
    """

    def __init__(
        self,
        attributes: Mapping[str, Sequence[str]],
        target: Num[Tensor, "*classes"] | None = None,
        *,
        missing: str = "error",
    ) -> None:
        sizes = tuple(len(classes) for classes in attributes.values())
        if target is not None and tuple(target.shape) != sizes:
            raise ValueError(f"a target over {list(attributes)} has shape {list(sizes)}, got {list(target.shape)}.")
        names = [" × ".join(names) for names in itertools.product(*attributes.values())]
        super().__init__(names, None if target is None else target.flatten(), missing=missing, groups=1)
        self.attributes = {name: tuple(classes) for name, classes in attributes.items()}

    def update(self, logits: Mapping[str, Float[Tensor, "images _"]]) -> None:
        """Adds attribute → logits [N, C]; attributes that are not studied here are ignored."""
        absent = [name for name in self.attributes if name not in logits]
        if absent:
            raise ValueError(f"the judge's answer lacks {absent}; it has {list(logits)}.")
        device = self.target.device
        parts = [_columns(logits[name], classes).to(device) for name, classes in self.attributes.items()]
        joint = product_probabilities([part.double().softmax(-1) for part in parts])
        found = torch.stack([faces_found(part) for part in parts]).all(0)
        groups = torch.zeros(len(joint), dtype=torch.int64, device=joint.device)
        # The product of independent answers is largest where each answer is.
        self._add(joint, joint.argmax(-1), found=found, groups=groups)

    def compute(self) -> FairnessResult:
        """FD over product classes."""
        return self._pooled()


def _columns(logits: Tensor, classes: Sequence[str]) -> Tensor:
    if logits.ndim != 2 or logits.shape[1] != len(classes):
        raise ValueError(f"logits of {tuple(classes)} are [N, {len(classes)}], got {list(logits.shape)}.")
    return logits
