"""The interface of a scorer and of the head it attributes through, and the head whose path integral has a closed form."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.attribution.quadrature import mean_softmax_gradient

Codes = Float[Tensor, "images latents height width"]


class Head(ABC):
    """Codes → class logits ℓ at one step: the probe after the decoder."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """Number of classes."""

    @abstractmethod
    def logits(self, codes: Codes) -> Float[Tensor, "images classes"]:
        """Logits of the decoded codes."""

    @abstractmethod
    def zero_logits(self) -> Float[Tensor, "classes"]:
        """Logits of all-zero codes."""

    @abstractmethod
    def mean_gradient(self, codes: Codes, baseline: Codes | None, labels: Int[Tensor, "images"], nodes: int) -> Codes:
        """∫₀¹ ∂F_c/∂z dα on the straight path from the baseline (zero codes if None) to the codes, F = softmax(ℓ).

        Args:
            codes: the path's end.
            baseline: its start.
            labels: class c of each image.
            nodes: of the Gauss–Legendre rule.
        """


@dataclass(frozen=True)
class AffineHead(Head):
    """Codes → class logits at one step: probe after decoder, both affine, so the whole head is.

    Args:
        decoder: SAE decoder rows [M, D].
        decoder_bias: [D].
        weight: probe weights as maps [C, D, H, W].
        bias: probe biases [C].
    """

    decoder: Float[Tensor, "latents channels"]
    decoder_bias: Float[Tensor, "channels"]
    weight: Float[Tensor, "classes channels height width"]
    bias: Float[Tensor, "classes"]

    @property
    def classes(self) -> int:
        """See `Head`."""
        return len(self.bias)

    def zero_logits(self) -> Float[Tensor, "classes"]:
        """See `Head`."""
        return self.bias + torch.einsum("cdhw,d->c", self.weight, self.decoder_bias)

    @cached_property
    def latent_weight(self) -> Float[Tensor, "classes latents height width"]:
        """∂ℓ/∂z of every class: what one unit of a latent at a position adds to the logits."""
        return torch.einsum("cdhw,md->cmhw", self.weight, self.decoder)

    def logits(self, codes: Float[Tensor, "images latents height width"]) -> Float[Tensor, "images classes"]:
        """Logits of the decoded codes; no map is decoded, which with few classes takes a fraction of the time."""
        # In this order neither side is copied: codes come as views of tokens, whose latents are innermost.
        flat, weight = (values.permute(0, 2, 3, 1).flatten(1) for values in (codes, self.latent_weight))
        return self.zero_logits() + flat @ weight.T

    def mean_gradient(self, codes: Codes, baseline: Codes | None, labels: Int[Tensor, "images"], nodes: int) -> Codes:
        """See `Head`; the integral shrinks to that of a C-vector, and one vector–Jacobian product is left."""
        start = self.zero_logits().expand(len(codes), -1) if baseline is None else self.logits(baseline)
        return self.pullback(mean_softmax_gradient(start, self.logits(codes) - start, labels, nodes).to(codes.dtype))

    def pullback(self, g: Float[Tensor, "images classes"]) -> Float[Tensor, "images latents height width"]:
        """The vector–Jacobian product Σ_j g_j ∂ℓ_j/∂z at every latent and position."""
        return torch.einsum("nc,cmhw->nmhw", g, self.latent_weight)


@runtime_checkable
class Scorer(Protocol):
    """Scores latents of images of one class at one step."""

    name: str

    def __call__(
        self,
        head: Head,
        codes: Float[Tensor, "images latents height width"],
        labels: Int[Tensor, "images"],
        baseline: Float[Tensor, "images latents height width"] | None = None,
    ) -> Float[Tensor, "images latents"]:
        """Score of every latent for each image's own class, summed over positions."""
        ...
