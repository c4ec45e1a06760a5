"""The head of a probe that is not affine: gradients by autograd instead of a closed form."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.attribution.base import Codes, Head
from difflens.attribution.quadrature import gauss_legendre


@dataclass(frozen=True)
class AutogradHead(Head):
    """Codes → class logits at one step: any differentiable probe after the decoder.

    Args:
        decoder: SAE decoder rows [M, D].
        decoder_bias: [D].
        probe: decoded maps [n, D, H, W] → logits [n, C].
        positions: height and width of the codes.
    """

    decoder: Float[Tensor, "latents channels"]
    decoder_bias: Float[Tensor, "channels"]
    probe: Callable[[Tensor], Tensor]
    positions: tuple[int, ...]

    @property
    def classes(self) -> int:
        """See `Head`."""
        return len(self.zero_logits())

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
            point = torch.lerp(start, codes, node).detach().requires_grad_()
            with torch.enable_grad():
                chosen = self.logits(point).softmax(-1).gather(1, labels[:, None]).sum()
                total += weight * torch.autograd.grad(chosen, point)[0]
        return total
