"""JumpReLU: a threshold of its own for each latent, learnt by gradient (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from difflens.sae.base import SparseAutoencoder, SparseCodes
from difflens.sae.batch_topk import kth_largest
from difflens.sae.losses import Objective, TrainingLoss, reconstruction_loss, token_variance

PACE = 20.0
"""log θ = PACE · parameter. Adam moves every parameter by about the learning rate: at pace 1 thresholds stayed behind the
encoder, and 500 updates on the miniature ended at L0 = 7 instead of 32."""


class _Above(torch.autograd.Function):
    """Whether a > θ, as 0 or 1, with the pseudo-derivative −K((a − θ)/ε)/ε in θ; K is 1 within half a unit of 0.

    The step's own derivative is 0 almost everywhere. The kernel estimates that of its *mean* over tokens (section 4).
    """

    @staticmethod
    def forward(ctx: Any, activations: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward((activations - threshold).abs() < bandwidth / 2)
        ctx.bandwidth = bandwidth
        return (activations > threshold).to(activations.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (near,) = ctx.saved_tensors
        # None for a, which learns through the factor a of z = a · 1[a > θ].
        return None, -(gradient * near).sum(0) / ctx.bandwidth, None


class JumpReLUAutoencoder(SparseAutoencoder):
    """`z = a · 1[a > θ]` with θ > 0 per latent; a penalty `(L0/k − 1)²` draws the mean number of active latents to `k`.

    The paper's penalty is λ·L0; drawing L0 to a number (its later form, Conerly et al. 2025, and Karvonen et al. 2025)
    lets `k` mean what it means for TopK. Thresholds start where the first batch has `k` active latents per token.

    Args:
        dim: as in `SparseAutoencoder`, like the arguments not named here.
        bandwidth: ε of the pseudo-derivative, in units of the scaled tokens, whose coordinates are of size 1.
        sparsity: weight of the penalty.
        settings: of `SparseAutoencoder`.

    Raises:
        ValueError: a bandwidth or weight that is not above 0.
    """

    started: Tensor

    def __init__(
        self, dim: int, *, bandwidth: float = 1.0, sparsity: float = 0.5, **settings: int | float | str | bool | None
    ) -> None:
        super().__init__(dim, **settings)  # type: ignore[arg-type]
        if not (bandwidth > 0 and sparsity > 0):
            raise ValueError(f"bandwidth={bandwidth} and sparsity={sparsity} must be above 0.")
        self.bandwidth, self.sparsity = bandwidth, sparsity
        self.log_threshold = nn.Parameter(torch.zeros(self.width))  # of θ, divided by PACE: θ is never below zero
        # A buffer, so that it is in checkpoints: a resumed training must not set its thresholds again.
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    @property
    def threshold(self) -> Float[Tensor, "width"]:
        """θ of each latent."""
        return (PACE * self.log_threshold).exp()

    def settings(self) -> dict[str, object]:
        """See `SparseAutoencoder.settings`."""
        return {**super().settings(), "bandwidth": self.bandwidth, "sparsity": self.sparsity}

    def select(self, activations: Float[Tensor, "tokens width"]) -> SparseCodes:
        """The pre-activations above their latent's threshold."""
        return SparseCodes.where(activations > self.threshold, activations)

    def loss(self, x: Float[Tensor, "tokens dim"], objective: Objective = Objective()) -> TrainingLoss:  # noqa: B008
        """See `SparseAutoencoder.loss`; with the penalty, and a gradient for the thresholds."""
        activations = self.pre_activations(x)
        self._start(activations.detach())
        above = _Above.apply(activations, self.threshold, self.bandwidth)
        # Dense: thresholds also learn from latents just below them, which sparse codes leave out.
        x_hat = (activations * above) @ self.w_dec + self.b_dec
        codes = SparseCodes.where(above > 0, activations.detach())
        dead = objective.observe(codes)
        variance = token_variance(x) if objective.variance is None else objective.variance
        auxiliary = self.auxiliary_loss(x, x - x_hat, activations, dead, objective)
        penalty = (above.sum(1).mean() / self.k - 1).square()
        total = (
            reconstruction_loss(x, x_hat, variance) + objective.aux_coefficient * auxiliary + self.sparsity * penalty
        )
        parts = {"auxiliary": auxiliary.detach(), "sparsity": penalty.detach()}
        return TrainingLoss(total, x_hat, codes, activations, parts)

    @torch.no_grad()
    def _start(self, activations: Tensor) -> None:
        if not self.started:
            # Above 0, where a logarithm exists: a batch may have too few positive activations.
            cut = kth_largest(activations, self.k * len(activations)).clamp_min(1e-3)
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                # Each rank sees tokens of its own; thresholds that start apart would stay apart.
                torch.distributed.all_reduce(cut)
                cut /= torch.distributed.get_world_size()
            self.log_threshold.fill_(float(cut.log()) / PACE)
            self.started.fill_(True)

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        """As for any SAE; a threshold is an activation, hence divided too."""
        super().fold_input_scale(scale)
        self.log_threshold.sub_(math.log(scale) / PACE)
        self.bandwidth /= scale
