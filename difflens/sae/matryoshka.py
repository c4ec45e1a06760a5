"""Nested BatchTopK: each prefix of the latents must reconstruct by itself (Bussmann et al. 2025, arXiv 2503.17547).

General features come first and specific ones later, since the first latents may lean on no other: with wider dictionaries
a general feature is then not absorbed by its special cases.
"""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from difflens.sae.base import SparseCodes
from difflens.sae.batch_topk import BatchTopKAutoencoder
from difflens.sae.codes import decode
from difflens.sae.losses import reconstruction_loss


class MatryoshkaAutoencoder(BatchTopKAutoencoder):
    """BatchTopK over all latents, trained to reconstruct from each of several prefixes of them.

    Args:
        dim: as in `SparseAutoencoder`, like the arguments not named here.
        prefixes: shares of the width, increasing, the last of them 1.
        settings: of `BatchTopKAutoencoder`.

    Raises:
        ValueError: prefixes that do not increase to 1, or of no latent.
    """

    def __init__(
        self,
        dim: int,
        *,
        prefixes: Sequence[float] = (0.0625, 0.125, 0.25, 0.5, 1.0),
        **settings: int | float | str | bool | None,
    ) -> None:
        super().__init__(dim, **settings)  # type: ignore[arg-type]
        self.prefixes = tuple(map(float, prefixes))
        self.sizes = [round(share * self.width) for share in self.prefixes]
        rising = all(first < second for first, second in pairwise([0, *self.sizes]))
        if not rising or self.sizes[-1:] != [self.width]:
            raise ValueError(
                f"prefixes={list(prefixes)} must be shares of the {self.width} latents that increase to 1, each by a latent."
            )

    def settings(self) -> dict[str, object]:
        """See `SparseAutoencoder.settings`."""
        return {**super().settings(), "prefixes": list(self.prefixes)}

    def reconstruction_loss(
        self, x: Float[Tensor, "tokens dim"], codes: SparseCodes, variance: Tensor
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "tokens dim"]]:
        """The mean over prefixes (the paper's sum: so the weight of AuxK means the same as elsewhere), and the whole's x̂."""
        losses, x_hat = [], self.b_dec.expand(len(x), -1)
        for start, stop in pairwise([0, *self.sizes]):
            # Each latent is decoded once: a longer prefix adds its own part to the shorter one's x̂.
            inside = (codes.indices >= start) & (codes.indices < stop)
            x_hat = x_hat + decode(SparseCodes(codes.values * inside, codes.indices), self.w_dec)
            losses.append(reconstruction_loss(x, x_hat, variance))
        return sum(losses[1:], losses[0]) / len(losses), x_hat
