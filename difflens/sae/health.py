"""Figures of an SAE's health, accumulated token by token so that they do not depend on how tokens were batched."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difflens.sae.decode import SparseCodes

DENSITY_EDGES = tuple(-6 + 0.25 * edge for edge in range(25))
"""Bin edges of the density histogram in log10 of the share of tokens on which a latent fires."""


@dataclass(frozen=True)
class SaeHealth:
    """How well and how sparsely an SAE reconstructs.

    Attributes:
        tokens: number of tokens seen.
        fvu: fraction of variance unexplained, all steps pooled: SSE / (Q − ‖S‖²/n).
        fvu_per_step: the same within each step, around the step's own mean; NaN for a step without tokens.
        l0: mean number of active latents per token.
        dead_share: share of latents that fired on no token.
        density_histogram: number of living latents per bin of `DENSITY_EDGES`; rarer ones count in the first bin.
    """

    tokens: int
    fvu: float
    fvu_per_step: tuple[float, ...]
    l0: float
    dead_share: float
    density_histogram: tuple[int, ...]


class HealthMeter(nn.Module):
    """Streaming float64 sums from which `SaeHealth` follows exactly; a mean of per-batch FVUs would be biased.

    Args:
        steps: number of denoising steps.
        dim: dimension of a token.
        width: number of latents.
    """

    count: Tensor
    total: Tensor
    squares: Tensor
    squared_error: Tensor
    fired: Tensor

    def __init__(self, steps: int, dim: int, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(steps, dtype=torch.int64))
        self.register_buffer("total", torch.zeros(steps, dim, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(steps, dtype=torch.float64))
        self.register_buffer("squared_error", torch.zeros(steps, dtype=torch.float64))
        self.register_buffer("fired", torch.zeros(width, dtype=torch.int64))

    def reset(self) -> None:
        """Forget every token."""
        for sums in self.buffers():
            sums.zero_()

    @torch.no_grad()
    def update(
        self,
        x: Float[Tensor, "tokens dim"],
        x_hat: Float[Tensor, "tokens dim"],
        codes: SparseCodes,
        step: Int[Tensor, "tokens"],
    ) -> None:
        """Add tokens, their reconstructions, their codes and the denoising step each comes from."""
        x, x_hat = x.double(), x_hat.double()
        self.count.index_add_(0, step, torch.ones_like(step))
        self.total.index_add_(0, step, x)
        self.squares.index_add_(0, step, x.square().sum(1))
        self.squared_error.index_add_(0, step, (x - x_hat).square().sum(1))
        self.fired += torch.bincount(codes.indices[codes.values > 0], minlength=len(self.fired))

    def compute(self) -> SaeHealth:
        """The figures of all tokens since the last reset.

        Raises:
            ValueError: no token was seen.
        """
        tokens = int(self.count.sum())
        if not tokens:
            raise ValueError("no token was measured; give the SAE's held-out set at least one image.")
        spread = self.squares.sum() - self.total.sum(0).square().sum() / tokens
        spread_per_step = self.squares - self.total.square().sum(1) / self.count
        return SaeHealth(
            tokens=tokens,
            fvu=float(self.squared_error.sum() / spread),
            fvu_per_step=tuple((self.squared_error / spread_per_step).tolist()),
            l0=float(self.fired.sum()) / tokens,
            dead_share=float((self.fired == 0).double().mean()),
            density_histogram=self._density_histogram(tokens),
        )

    def _density_histogram(self, tokens: int) -> tuple[int, ...]:
        density = (self.fired[self.fired > 0].double().cpu() / tokens).log10()
        edges = torch.tensor(DENSITY_EDGES, dtype=torch.float64)
        counts, _ = torch.histogram(density.clamp(edges[0], edges[-1]), edges)
        return tuple(counts.long().tolist())
