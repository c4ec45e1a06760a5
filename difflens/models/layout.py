"""How a site's tensor becomes a map [n, C, H, W] and a map the site's tensor again, so that nobody else asks which it was."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Layout(Protocol):
    """How a site's tensor is arranged."""

    def as_map(self, h: Tensor) -> Float[Tensor, "images channels height width"]:
        """The site's tensor as a map."""
        ...

    def from_map(self, h: Float[Tensor, "images channels height width"]) -> Tensor:
        """A map as the site's tensor; the inverse of `as_map`."""
        ...


class Maps:
    """A tensor that is a map already, as convolutional blocks give it."""

    def as_map(self, h: Tensor) -> Tensor:
        """The tensor itself."""
        return h

    def from_map(self, h: Tensor) -> Tensor:
        """The map itself."""
        return h


@dataclass(frozen=True)
class Tokens:
    """Tokens [n, H·W, C] of a transformer block, row by row of the image."""

    height: int
    width: int

    def as_map(self, h: Tensor) -> Tensor:
        """The tokens laid out as the image they stand for."""
        return h.transpose(1, 2).unflatten(2, (self.height, self.width))

    def from_map(self, h: Tensor) -> Tensor:
        """The map's positions one after the other."""
        return h.flatten(2).transpose(1, 2)


def layout_of(h: Tensor, size: Sequence[int]) -> Layout:
    """The layout of a tensor met inside a denoiser whose input has `size` = (height, width).

    Tokens are those of a map `size`/k for a whole k, rounded up as strided convolutions do.

    Raises:
        ValueError: it is neither a map nor the tokens of one.
    """
    if h.ndim == 4:
        return Maps()
    if h.ndim == 3:
        for k in range(1, max(size) + 1):
            height, width = math.ceil(size[0] / k), math.ceil(size[1] / k)
            if height * width == h.shape[1]:
                return Tokens(height, width)
    raise ValueError(
        f"activations of shape {tuple(h.shape)} are not a map [n, D, H, W], nor tokens [n, T, D] of a map of the "
        f"denoiser's input of {size[0]}×{size[1]}; name another site.module."
    )
