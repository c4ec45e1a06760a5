"""Raw neurons in the place of an autoencoder's latents: every channel, above and below its mean, is one.

The baseline of "activation" steering: everything after the dictionary (probe, attribution, edit) stays as it is.
"""

import torch
from torch import Tensor

from difflens.sae.base import SparseAutoencoder, SparseCodes


class Neurons(SparseAutoencoder):
    """z = [ReLU(h − μ), ReLU(μ − h)], W_dec = [I; −I], b_dec = μ, the mean activation. Nothing is trained.

    Settings of other autoencoders (`expansion`, `k`, `centre`) have no meaning here.

    Raises:
        ValueError: another token than `position`.
    """

    only_selects = True
    trains = False

    def __init__(self, dim: int, *, token: str = "position", positions: int | None = None, **settings: object) -> None:
        if token != "position":
            raise ValueError("neurons are two latents per channel and position; leave sae.token=position.")
        # Of a channel's two latents at most one is positive.
        super().__init__(dim, expansion=2, k=dim, positions=positions)
        identity = torch.eye(self.dim)
        directions = torch.cat([identity, -identity])
        with torch.no_grad():
            self.w_enc.copy_(directions)
            self.w_dec.copy_(directions)

    def settings(self) -> dict[str, object]:
        """See `SparseAutoencoder`."""
        return {"dim": self.channels}

    def select(self, activations: Tensor) -> SparseCodes:
        """All that are positive."""
        return SparseCodes.where(activations > 0, activations)
