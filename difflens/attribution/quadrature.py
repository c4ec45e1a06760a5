"""Integrals along the path of integrated gradients, by Gauss–Legendre nodes."""

from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


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
    """G = ∫₀¹ p_c (e_c − p) dα along the logits ℓ(α) = start + α·change (METHOD section 4), in float64."""
    points, weights = gauss_legendre(nodes)
    logits = start.double() + points[:, None, None].to(start.device) * change.double()
    p = logits.softmax(-1)
    own = torch.nn.functional.one_hot(labels, p.shape[-1]).double()
    p_own = (p * own).sum(-1, keepdim=True)
    return (weights[:, None, None].to(start.device) * p_own * (own - p)).sum(0)
