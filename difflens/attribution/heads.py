"""The head that attribution goes through, from codes to class logits, and the integral of its gradient along a path."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

PER_PIECE = 16.0
"""Change of logits against each other along which 32 nodes integrate a softmax to 1e-10 or better."""

Codes = Float[Tensor, "images latents height width"]


@cache
def gauss_legendre(nodes: int) -> tuple[Float[Tensor, "nodes"], Float[Tensor, "nodes"]]:
    """Nodes and weights on [0, 1], float64."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


def mean_softmax_gradient(
    start: Float[Tensor, "images classes"],
    change: Float[Tensor, "images classes"],
    labels: Int[Tensor, "images"],
    nodes: int,
) -> Float[Tensor, "images classes"]:
    """G = ∫₀¹ p_c (e_c − p) dα along the logits ℓ(α) = start + α·change (METHOD section 4), in float64.

    A softmax turns within a few units of its logits: the path is cut into pieces on which they change by little more, so that
    the sum is complete for changes of any size.
    """
    points, weights = (values[:, None, None].to(start.device) for values in gauss_legendre(nodes))
    # In double: where the softmax is nearly certain, own − p cancels to a few digits of float32.
    first, piece = start.double(), change.double()
    # Their spread, not their size: a softmax does not see what all logits have in common.
    widest = float((piece.amax(-1) - piece.amin(-1)).amax()) if len(piece) else 0.0
    pieces = max(1, math.ceil(widest / PER_PIECE))
    piece = piece / pieces
    own = torch.nn.functional.one_hot(labels, change.shape[-1]).double()
    total = torch.zeros_like(first)
    # Piece by piece, so that memory does not grow with the size of the change.
    for number in range(pieces):
        p = (first + (number + points) * piece).softmax(-1)
        total += (weights * (p * own).sum(-1, keepdim=True) * (own - p)).sum(0)
    return total / pieces


class Head(ABC):
    """Codes → class logits ℓ at one step: the probe after the decoder."""

    @abstractmethod
    def logits(self, codes: Codes) -> Float[Tensor, "images classes"]:
        """Logits of the decoded codes."""

    @abstractmethod
    def zero_logits(self) -> Float[Tensor, "classes"]:
        """Logits of all-zero codes."""

    @abstractmethod
    def mean_gradient(self, codes: Codes, baseline: Codes | None, labels: Int[Tensor, "images"], nodes: int) -> Codes:
        """∫₀¹ ∂F_c/∂z dα on the straight path from the baseline (zero codes if None) to the codes, F = softmax(ℓ).

        Class c is each image's label; `nodes` are those of a Gauss–Legendre rule.
        """


@dataclass(frozen=True)
class AffineHead(Head):
    """Codes → class logits at one step: probe (weights as maps) after decoder, both affine, so the whole head is."""

    decoder: Float[Tensor, "latents channels"]
    decoder_bias: Float[Tensor, "channels"]
    weight: Float[Tensor, "classes channels height width"]
    bias: Float[Tensor, "classes"]

    def zero_logits(self) -> Float[Tensor, "classes"]:
        """See `Head`."""
        return self.bias + torch.einsum("cdhw,d->c", self.weight, self.decoder_bias)

    @cached_property
    def latent_weight(self) -> Float[Tensor, "classes latents height width"]:
        """∂ℓ/∂z of every class: what one unit of a latent at a position adds to the logits."""
        # Once per step. `cached_property` writes past the frozen dataclass, which refuses assignments.
        return torch.einsum("cdhw,md->cmhw", self.weight, self.decoder)

    def logits(self, codes: Codes) -> Float[Tensor, "images classes"]:
        """Logits of the decoded codes; no map is decoded, which with few classes takes a fraction of the time."""
        # In this order neither side is copied: codes come as views of tokens, whose latents are innermost.
        flat, weight = (values.permute(0, 2, 3, 1).flatten(1) for values in (codes, self.latent_weight))
        return self.zero_logits() + flat @ weight.T

    def mean_gradient(self, codes: Codes, baseline: Codes | None, labels: Int[Tensor, "images"], nodes: int) -> Codes:
        """See `Head`; the integral shrinks to that of a C-vector, and one vector–Jacobian product is left."""
        # Logits are affine along the path (METHOD section 4): its two ends suffice, nothing in between is decoded.
        start = self.zero_logits().expand(len(codes), -1) if baseline is None else self.logits(baseline)
        gradient = mean_softmax_gradient(start, self.logits(codes) - start, labels, nodes).to(codes.dtype)
        return torch.einsum("nc,cmhw->nmhw", gradient, self.latent_weight)


@dataclass(frozen=True)
class AutogradHead(Head):
    """Codes → class logits at one step: any differentiable probe after the decoder; `positions` are H, W of codes."""

    decoder: Float[Tensor, "latents channels"]
    decoder_bias: Float[Tensor, "channels"]
    probe: Callable[[Tensor], Tensor]
    positions: tuple[int, ...]

    def logits(self, codes: Codes) -> Float[Tensor, "images classes"]:
        """See `Head`."""
        return self.probe(torch.einsum("nmhw,md->ndhw", codes, self.decoder) + self.decoder_bias[:, None, None])

    def zero_logits(self) -> Float[Tensor, "classes"]:
        """See `Head`."""
        return self.logits(self.decoder.new_zeros(1, len(self.decoder), *self.positions))[0]

    def mean_gradient(self, codes: Codes, baseline: Codes | None, labels: Int[Tensor, "images"], nodes: int) -> Codes:
        """See `Head`; one backward pass for each node."""
        start = torch.zeros_like(codes) if baseline is None else baseline
        total = torch.zeros_like(codes)
        for node, weight in zip(*(values.tolist() for values in gauss_legendre(nodes)), strict=True):
            # A leaf for each node: its graph is freed before the next one, so memory does not grow with them.
            point = torch.lerp(start, codes, node).detach().requires_grad_()
            # The sweep runs without gradients, as `Trainer.predict` does outside of inference mode.
            with torch.enable_grad():
                # No image depends on another: the gradient of the sum holds each image's own.
                chosen = self.logits(point).softmax(-1).gather(1, labels[:, None]).sum()
                total += weight * torch.autograd.grad(chosen, point)[0]
        return total
