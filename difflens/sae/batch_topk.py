"""The k·N largest activations of a batch of N tokens (Bussmann et al. 2024)."""

import torch
from jaxtyping import Float
from torch import Tensor

from difflens.sae.base import SparseAutoencoder, SparseCodes


class BatchTopKAutoencoder(SparseAutoencoder):
    """Activations above a threshold: in training mode the batch's own, in evaluation mode the one learnt.

    Tokens may have more or fewer than `k` active latents. Outside training a token's codes do not depend on its neighbours.

    Args:
        dim: as in `SparseAutoencoder`.
        threshold_decay: of the moving average of each batch's smallest kept activation.
        settings: of `SparseAutoencoder`; `k` is the mean number of active latents per token.
    """

    only_selects = True
    threshold: Tensor
    batches_seen: Tensor

    def __init__(self, dim: int, *, threshold_decay: float = 0.98, **settings: int | float | str | bool | None) -> None:
        super().__init__(dim, **settings)  # type: ignore[arg-type]
        if not 0 <= threshold_decay < 1:
            raise ValueError(f"threshold_decay={threshold_decay} must lie in [0, 1).")
        self.threshold_decay = threshold_decay
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))

    def settings(self) -> dict[str, object]:
        """The constructor's arguments, from which an equal SAE can be built."""
        return {**super().settings(), "threshold_decay": self.threshold_decay}

    def select(self, activations: Float[Tensor, "tokens width"]) -> SparseCodes:
        """The positive pre-activations at or above the threshold."""
        # Detached: where the batch is cut is no path for a gradient. With fewer than k·N positive activations the cut
        # lies at or below 0, hence the second condition.
        threshold = kth_largest(activations.detach(), self.k * len(activations)) if self.training else self.threshold
        return SparseCodes.where((activations >= threshold) & (activations > 0), activations)

    @torch.no_grad()
    def update_statistics(self, codes: SparseCodes) -> None:
        """Move the threshold towards the smallest activation this training batch kept."""
        kept = codes.values[codes.values > 0]
        if not kept.numel():
            return
        # The first batch is taken whole: an average that began at 0 would stay too low for many batches.
        decay = self.threshold_decay if self.batches_seen else 0.0
        self.threshold.mul_(decay).add_((1 - decay) * kept.min())
        self.batches_seen.add_(1)

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        """As for any SAE; the threshold is an activation, hence divided too."""
        super().fold_input_scale(scale)
        self.threshold.div_(scale)


def kth_largest(values: Tensor, k: int) -> Float[Tensor, ""]:
    """The k-th largest of all entries."""
    flat = values.flatten()
    # A sample tells where to cut first: sorting what may be among the k is then all that is left (6x faster).
    sample = flat[:: max(1, len(flat) // 65_536)]
    # With room to spare, since a cut that is too high leaves fewer than k; should it, all are sorted.
    rank = min(len(sample), round(1.5 * k * len(sample) / len(flat)) + 64)
    candidates = flat[flat >= sample.topk(rank, sorted=False).values.min()]
    return (candidates if len(candidates) >= k else flat).topk(k, sorted=False).values.min()
