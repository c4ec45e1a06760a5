"""Integrated gradients of a class probability through an affine head: exact with one vector–Jacobian product."""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.attribution.base import AffineHead

Codes = Float[Tensor, "images latents height width"]


@cache
def _gauss_legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], float64."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


def mean_softmax_gradient(
    start: Float[Tensor, "images classes"],
    change: Float[Tensor, "images classes"],
    labels: Int[Tensor, "images"],
    nodes: int,
) -> Float[Tensor, "images classes"]:
    """G = ∫₀¹ p_c (e_c − p) dα along the logits ℓ(α) = start + α·change (METHOD section 4), in float64."""
    points, weights = _gauss_legendre(nodes)
    logits = start.double() + points[:, None, None].to(start.device) * change.double()
    p = logits.softmax(-1)
    own = torch.nn.functional.one_hot(labels, p.shape[-1]).double()
    p_own = (p * own).sum(-1, keepdim=True)
    return (weights[:, None, None].to(start.device) * p_own * (own - p)).sum(0)


class IntegratedGradients:
    """IG of F_c = softmax(probe(decode(z)))_c from a baseline (zero codes unless given) to z.

    The head is affine, so the logits are affine along the path and the path integral shrinks to that of a C-vector
    (METHOD section 4); `nodes` Gauss–Legendre nodes make it exact to rounding.
    """

    name = "integrated_gradients"

    def __init__(self, nodes: int = 32) -> None:
        if nodes < 4:
            raise ValueError(f"attribution.nodes must be at least 4, got {nodes}.")
        self.nodes = nodes

    def __call__(
        self, head: AffineHead, codes: Codes, labels: Int[Tensor, "images"], baseline: Codes | None = None
    ) -> Float[Tensor, "images latents"]:
        """See `Scorer`; the scores of an image sum to F_c(z) − F_c(baseline)."""
        difference = codes if baseline is None else codes - baseline
        start = head.zero_logits().expand(len(codes), -1) if baseline is None else head.logits(baseline)
        g = mean_softmax_gradient(start, head.logits(codes) - start, labels, self.nodes)
        return (difference * head.pullback(g.to(codes.dtype))).sum((-1, -2))


def riemann_integrated_gradients(
    forward: Callable[[Codes], Float[Tensor, "images classes"]],
    codes: Codes,
    labels: Int[Tensor, "images"],
    steps: int = 10,
) -> Float[Tensor, "images latents"]:
    """The left Riemann sum of the paper's released code (`protocol: official`), by autograd through any probe.

    Args:
        forward: codes → class logits; need not be affine.
        codes: [n, M, H, W]; the baseline is zero.
        labels: class whose probability is attributed, per image.
        steps: points on the path, at α = 0, 1/steps, …, (steps−1)/steps.
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

    def __call__(
        self, head: AffineHead, codes: Codes, labels: Int[Tensor, "images"], baseline: Codes | None = None
    ) -> Float[Tensor, "images latents"]:
        """See `Scorer`.

        Raises:
            ValueError: a baseline is given; the released code knows only zero.
        """
        if baseline is not None:
            raise ValueError("the official protocol attributes from a zero baseline only.")
        return riemann_integrated_gradients(head.logits, codes, labels)


class GradientTimesActivation:
    """z · ∂F_c/∂z at z."""

    name = "gradient_times_activation"

    def __call__(
        self, head: AffineHead, codes: Codes, labels: Int[Tensor, "images"], baseline: Codes | None = None
    ) -> Float[Tensor, "images latents"]:
        """See `Scorer`."""
        logits = head.logits(codes)
        g = mean_softmax_gradient(logits, torch.zeros_like(logits), labels, 4)
        difference = codes if baseline is None else codes - baseline
        return (difference * head.pullback(g.to(codes.dtype))).sum((-1, -2))
