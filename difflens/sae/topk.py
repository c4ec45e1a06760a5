"""The k largest activations of each token (Makhzani & Frey 2014; Gao et al. 2024)."""

from jaxtyping import Float
from torch import Tensor

from difflens.sae.base import SparseAutoencoder, SparseCodes
from difflens.sae.losses import strongest


class TopKAutoencoder(SparseAutoencoder):
    """`z = TopK_k(ReLU(a))` token by token: at most `k` active latents each."""

    only_selects = True

    def select(self, activations: Float[Tensor, "tokens width"]) -> SparseCodes:
        """The `k` largest positive pre-activations of each token, in no particular order."""
        return strongest(activations, self.k)
