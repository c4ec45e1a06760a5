"""Scorers: how much each latent drives a class in an image; integrated gradients, and what they must beat."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.attribution.heads import Codes, Head

Labels = Int[Tensor, "images"]
Scores = Float[Tensor, "images latents"]


@runtime_checkable
class Scorer(Protocol):
    """Scores latents of images of one class at one step."""

    name: str

    def __call__(self, head: Head, codes: Codes, labels: Labels, baseline: Codes | None = None) -> Scores:
        """Score of every latent for each image's own class, summed over positions."""
        ...


class IntegratedGradients:
    """IG of F_c = softmax(probe(decode(z)))_c from a baseline (zero codes unless given) to z.

    Where the head is affine, so are the logits along the path, and `nodes` Gauss–Legendre nodes make the integral exact to
    rounding (METHOD section 4). Any other head takes as many backward passes.
    """

    name = "integrated_gradients"

    def __init__(self, nodes: int = 32) -> None:
        if nodes < 4:
            raise ValueError(f"attribution.nodes must be at least 4, got {nodes}.")
        self.nodes = nodes

    def __call__(self, head: Head, codes: Codes, labels: Labels, baseline: Codes | None = None) -> Scores:
        """See `Scorer`; the scores of an image sum to F_c(z) − F_c(baseline)."""
        difference = codes if baseline is None else codes - baseline
        return (difference * head.mean_gradient(codes, baseline, labels, self.nodes)).sum((-1, -2))


def riemann_integrated_gradients(
    forward: Callable[[Codes], Float[Tensor, "images classes"]], codes: Codes, labels: Labels, steps: int = 10
) -> Scores:
    """The left Riemann sum of the paper's released code (`protocol: official`) from zero codes, by autograd.

    `forward` gives class logits and need not be affine; the path's `steps` points lie at α = 0, 1/steps, …,
    (steps−1)/steps.
    """
    total = torch.zeros_like(codes)
    for step in range(steps):
        point = (codes * (step / steps)).requires_grad_()
        with torch.enable_grad():
            chosen = forward(point).softmax(-1).gather(1, labels[:, None]).sum()
            total += torch.autograd.grad(chosen, point)[0]
    return (codes * total / steps).sum((-1, -2))


class OfficialIntegratedGradients:
    """The released code's 10-point left Riemann sum, ten backward passes (METHOD section 9)."""

    name = "integrated_gradients_official"

    def __call__(self, head: Head, codes: Codes, labels: Labels, baseline: Codes | None = None) -> Scores:
        """See `Scorer` (ValueError: a baseline is given; the released code knows only zero)."""
        if baseline is not None:
            raise ValueError("the official protocol attributes from a zero baseline only.")
        return riemann_integrated_gradients(head.logits, codes, labels)


class GradientTimesActivation:
    """z · ∂F_c/∂z at z."""

    name = "gradient_times_activation"

    def __call__(self, head: Head, codes: Codes, labels: Labels, baseline: Codes | None = None) -> Scores:
        """See `Scorer`."""
        difference = codes if baseline is None else codes - baseline
        # From z to z the path is one point, on which any rule is exact: this is the gradient at z itself.
        return (difference * head.mean_gradient(codes, codes, labels, 4)).sum((-1, -2))


class GradientTimesDistance:
    """|z − z'| · ∂F_c/∂z at z: what the released code ranks by on Stable Diffusion (METHOD section 9)."""

    name = "gradient_times_distance"

    def __call__(self, head: Head, codes: Codes, labels: Labels, baseline: Codes | None = None) -> Scores:
        """See `Scorer`."""
        # Without a sign, as released: a latent weaker than in the baseline counts like one that is stronger.
        distance = (codes if baseline is None else codes - baseline).abs()
        return (distance * head.mean_gradient(codes, codes, labels, 4)).sum((-1, -2))


class MeanActivation:
    """The latent's summed activation; averaged per class and contrasted, it is the mean difference between classes."""

    name = "mean_difference"

    def __call__(self, head: Head, codes: Codes, labels: Labels, baseline: Codes | None = None) -> Scores:
        """See `Scorer`."""
        # The head is not asked: as a control it must know nothing of the probe.
        return (codes if baseline is None else codes - baseline).sum((-1, -2))


class RandomScores:
    """Uniform noise: the control every attribution must beat."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, head: Head, codes: Codes, labels: Labels, baseline: Codes | None = None) -> Scores:
        """See `Scorer`; the same scores for every image of a class."""
        # Seeded anew at each call and drawn per class: scores do not depend on how images are batched.
        rows = torch.empty(len(head.zero_logits()), codes.shape[1], device=codes.device)
        rows.uniform_(generator=torch.Generator(codes.device).manual_seed(self.seed))
        return rows[labels]
