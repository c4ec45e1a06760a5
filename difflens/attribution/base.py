"""The interface of a scorer and the affine head it attributes through."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class AffineHead:
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

    def zero_logits(self) -> Float[Tensor, "classes"]:
        """Logits of all-zero codes."""
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

    def pullback(self, g: Float[Tensor, "images classes"]) -> Float[Tensor, "images latents height width"]:
        """The vector–Jacobian product Σ_j g_j ∂ℓ_j/∂z at every latent and position."""
        return torch.einsum("nc,cmhw->nmhw", g, self.latent_weight)


@runtime_checkable
class Scorer(Protocol):
    """Scores latents of images of one class at one step."""

    name: str

    def __call__(
        self,
        head: AffineHead,
        codes: Float[Tensor, "images latents height width"],
        labels: Int[Tensor, "images"],
        baseline: Float[Tensor, "images latents height width"] | None = None,
    ) -> Float[Tensor, "images latents"]:
        """Score of every latent for each image's own class, summed over positions."""
        ...
