"""Figures of tokens and of SAEs: how varied tokens are, how well codes reconstruct them, what a denoiser makes of it."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difflens.sae.codes import SparseCodes
from difflens.sae.losses import token_variance

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
    """Streaming float64 sums from which `SaeHealth` follows exactly; a mean of per-batch FVUs would be biased."""

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
        # In double: `compute` takes the difference of two sums that may nearly cancel.
        x, x_hat = x.double(), x_hat.double()
        self.count.index_add_(0, step, torch.ones_like(step))
        self.total.index_add_(0, step, x)
        self.squares.index_add_(0, step, x.square().sum(1))
        self.squared_error.index_add_(0, step, (x - x_hat).square().sum(1))
        self.fired += torch.bincount(codes.indices[codes.values > 0], minlength=len(self.fired))

    def compute(self) -> SaeHealth:
        """The figures of all tokens since the last reset (ValueError: no token was seen)."""
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
        # On the CPU: `torch.histogram` is not implemented elsewhere.
        density = (self.fired[self.fired > 0].double().cpu() / tokens).log10()
        edges = torch.tensor(DENSITY_EDGES, dtype=torch.float64)
        counts, _ = torch.histogram(density.clamp(edges[0], edges[-1]), edges)
        return tuple(counts.long().tolist())


class LossRecovered(NamedTuple):
    """Denoising loss recovered per step [steps] (float64), with the ends of its 95 % interval; all NaN where undefined."""

    value: Float[Tensor, "steps"]
    low: Float[Tensor, "steps"]
    high: Float[Tensor, "steps"]


def denoising_loss_recovered(
    *,
    original: Float[Tensor, "steps images"],
    reconstructed: Float[Tensor, "steps images"],
    ablated: Float[Tensor, "steps images"],
    draws: int = 1000,
) -> LossRecovered:
    """`(L_ablated − L_sae) / (L_ablated − L_original)` per step: 1 if x̂ serves the denoiser as well as x.

    Losses are those of each image: of the untouched model, with the site replaced by the reconstruction, and by its mean.
    The interval is a bootstrap over images (percentiles). Where the denominator may be zero, because the ablation costs
    nothing that these images could tell from noise, the ratio is noise over noise and not defined.
    """
    gained, lost = (ablated - reconstructed).double(), (ablated - original).double()
    images = lost.shape[1]
    # The same draws above and below the line: a ratio of means, both over the same images.
    rows = torch.randint(images, (draws, images), generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    drawn, ratios = lost[:, rows].mean(-1), gained[:, rows].mean(-1) / lost[:, rows].mean(-1)
    defined = torch.quantile(drawn, 0.025, dim=1) > 0
    # A single NaN would spoil a whole quantile; what is undefined is blanked out below.
    low, high = torch.quantile(ratios.nan_to_num(), ends, dim=1)
    value = gained.mean(1) / lost.mean(1)
    return LossRecovered(*(torch.where(defined, each, torch.nan) for each in (value, low, high)))


class TokenStatistics(NamedTuple):
    """Statistics of a sample of tokens, float64."""

    mean: Float[Tensor, "dim"]
    scale: float
    """`√D / E‖x − μ‖`: times this, centred tokens have a mean norm of √D."""
    variance: Float[Tensor, ""]
    """`E‖x − μ‖²`."""
    variance_per_step: Float[Tensor, "steps"]
    """The same within each step, around the step's own mean; 0 for a step without varying tokens."""


def require_finite(x: Float[Tensor, "tokens dim"], site: str) -> None:
    """Refuse tokens that hold NaN or infinity (ValueError: naming the site and the number of such tokens)."""
    broken = int((~x.isfinite().all(1)).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(x)} tokens of {site} hold NaN or infinity; "
            "generate the activations again, in a wider dtype if they are float16."
        )


@torch.no_grad()
def token_statistics(
    x: Float[Tensor, "tokens dim"], step: Int[Tensor, "tokens"], *, steps: int, site: str
) -> TokenStatistics:
    """Mean, input scale and variances of a sample of tokens of a site, each recorded at a denoising step.

    Raises:
        ValueError: the tokens are not finite, or all equal; the message names the site.
    """
    require_finite(x, site)
    # Tokens may lie far from the origin, where float32 has few digits left for their spread.
    exact = x.double()
    deviation = exact - exact.mean(0)
    if not deviation.any():
        raise ValueError(f"all {len(x)} tokens of {site} are equal; is this the right site?")
    per_step = exact.new_zeros(steps)
    for index in range(steps):
        if (step == index).any():
            per_step[index] = token_variance(exact[step == index])
    scale = math.sqrt(x.shape[1]) / float(deviation.norm(dim=1).mean())
    return TokenStatistics(exact.mean(0), scale, deviation.square().sum(1).mean(), per_step)
