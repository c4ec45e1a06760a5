"""Training of a sparse autoencoder: losses from `difflens.sae.losses`, dead latents counted, decoder rows kept unit."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import lightning as L
import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from difflens.sae.base import SparseAutoencoder
from difflens.sae.codes import SparseCodes
from difflens.sae.health import HealthMeter, require_finite, token_statistics
from difflens.sae.losses import Objective, TrainingLoss, token_variance

Variance = Literal["dataset", "batch", "step"]
Batch = Sequence[Tensor]
"""Tokens [B, D] and the denoising step of each [B]; a `DataLoader` makes it a list."""


class SaeModule(L.LightningModule):
    """Trains an SAE on batches `(tokens [B, D], step [B])`: `calibrate_input` first, `fold_scale` last.

    Args:
        sae: the SAE; it sees scaled tokens until `fold_scale`.
        steps: number of denoising steps.
        tokens: length of the run; with `batch` it fixes the schedule and when a latent counts as dead.
        batch: tokens per batch.
        lr: learning rate, `sae_learning_rate(width)` if None.
        warmup: updates of linear warm-up, at most a tenth of the run.
        decay: last share of the run over which the learning rate falls to 0.
        aux_coefficient: weight of the AuxK loss, 0 for none.
        k_aux: dead latents used by AuxK, half the token dimension if None.
        variance: what divides the squared error: the variance of the `dataset`, of each `batch`, or of each `step`.
        site: named in error messages.

    Raises:
        ValueError: an unknown `variance`.
    """

    input_scale: Tensor
    variance: Tensor
    tokens_since_fired: Tensor

    def __init__(
        self,
        sae: SparseAutoencoder,
        *,
        steps: int,
        tokens: int,
        batch: int = 4096,
        lr: float | None = None,
        warmup: int = 1000,
        decay: float = 0.2,
        aux_coefficient: float = 1 / 32,
        k_aux: int | None = None,
        variance: str = "dataset",
        site: str = "the site",
    ) -> None:
        super().__init__()
        if variance not in get_args(Variance):
            raise ValueError(f"variance={variance!r} is unknown; use one of {get_args(Variance)}.")
        # Numbers and words alone: checkpoints are loaded with `weights_only=True`, which refuses objects.
        self.save_hyperparameters(ignore=["sae"])
        self.sae = sae
        self.updates = max(1, tokens // batch)
        # On a short run no latent would be silent for 10 million tokens.
        self.dead_after = min(10_000_000, tokens // 20)
        self.health = HealthMeter(steps, sae.dim, sae.width)
        # Buffers, so that checkpoints hold them: a resumed training counts on where it was.
        self.register_buffer("input_scale", torch.zeros(()))
        self.register_buffer("variance", torch.zeros(()))
        self.register_buffer("variance_per_step", torch.zeros(steps))
        self.register_buffer("tokens_since_fired", torch.zeros(sae.width, dtype=torch.int64))

    @torch.no_grad()
    def calibrate_input(self, x: Float[Tensor, "tokens dim"], step: Int[Tensor, "tokens"]) -> None:
        """Set input scale, decoder bias (the data mean) and V from a first sample of tokens.

        Raises:
            ValueError: the tokens are not finite, all equal, or (for `variance="step"`) do not vary at every step.
        """
        steps = len(self.health.count)
        found = token_statistics(x, step, steps=steps, site=self.hparams["site"])
        if self.hparams["variance"] == "step" and not found.variance_per_step.all():
            lacking = (found.variance_per_step == 0).nonzero().flatten().tolist()
            raise ValueError(f"variance='step' needs varying tokens of every step; the sample lacks steps {lacking}.")
        self.input_scale.fill_(found.scale)
        # Scaled like the tokens that the SAE sees.
        self.sae.b_dec.copy_(found.mean * found.scale)
        self.variance.copy_(found.variance)
        self.get_buffer("variance_per_step").copy_(found.variance_per_step)

    def fold_scale(self) -> SparseAutoencoder:
        """The SAE, made to take raw activations; the module goes on at scale 1."""
        self.sae.fold_input_scale(float(self.input_scale))
        self.input_scale.fill_(1)
        return self.sae

    @property
    def dead(self) -> Tensor:
        """Latents that have not fired for `min(10M, 5 % of the run)` tokens: [width], bool."""
        return self.tokens_since_fired >= self.dead_after

    def on_train_start(self) -> None:
        """Refuse to train on unscaled tokens."""
        assert self.input_scale > 0, "calibrate_input(tokens, step) comes before training"

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The SAE's own loss of one batch (ValueError: the tokens or the loss are not finite)."""
        x, step = batch
        require_finite(x, self.hparams["site"])
        x = x * self.input_scale
        aux = {name: self.hparams[name] for name in ("aux_coefficient", "k_aux")}
        found = self.sae.loss(x, Objective(self._variance(x, step), self._observe, **aux))
        if not found.total.isfinite():
            raise ValueError(
                f"the SAE's loss became {found.total.item()} at update {self.global_step}; lower sae.training.lr."
            )
        self._log_training(x - found.x_hat.detach(), found)
        return found.total

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """This rank's share of a batch: every rank is given the whole stream, of which `data=online` samples all on each."""
        ranks = self.trainer.world_size
        return batch if ranks == 1 else [part[self.global_rank :: ranks] for part in batch]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam with warm-up and linear decay."""
        lr = self.hparams["lr"] or sae_learning_rate(self.sae.width)
        # Fused, Adam takes a ninth of the time; under mixed precision Lightning cannot clip for a fused optimiser.
        mixed = self._trainer is not None and "mixed" in str(self._trainer.precision)
        optimizer = torch.optim.Adam(self.sae.parameters(), lr=lr, fused=None if mixed else True)
        # A short run would be warm-up and nothing else.
        warmup, decay = min(self.hparams["warmup"], self.updates // 10), self.hparams["decay"]
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda update: trapezoid(update, self.updates, warmup=warmup, decay=decay)
        )
        # By update: the whole training is one epoch.
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Remove the decoder gradient along its rows, then clip to norm 1: only what moves the rows counts."""
        self.sae.remove_parallel_gradient()
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Step, then renormalise at once: a checkpoint callback may save before any later hook of this module."""
        super().optimizer_step(*arguments, **named)
        self.sae.normalise_decoder()

    def _variance(self, x: Tensor, step: Tensor) -> Tensor:
        if self.hparams["variance"] == "batch":
            return token_variance(x)
        raw = self.variance if self.hparams["variance"] == "dataset" else self.get_buffer("variance_per_step")[step]
        # V was measured on raw tokens, the error is that of scaled ones.
        return raw * self.input_scale.square()

    @torch.no_grad()
    def _observe(self, codes: SparseCodes) -> Tensor:
        """Count a batch, and say which latents are dead now."""
        fired = torch.zeros(len(self.tokens_since_fired), dtype=torch.uint8, device=codes.values.device)
        fired[codes.indices[codes.values > 0]] = 1
        # Each rank sees its part of the batch: a latent lives where it fired on any of them.
        ranks = 1 if self._trainer is None else self._trainer.world_size
        if ranks > 1:
            torch.distributed.all_reduce(fired, torch.distributed.ReduceOp.MAX)
        self.tokens_since_fired += ranks * len(codes.values)
        self.tokens_since_fired[fired.bool()] = 0
        self.sae.update_statistics(codes)
        return self.dead

    def _log_training(self, error: Tensor, found: TrainingLoss) -> None:
        fvu = error.square().sum(1).mean() / (self.variance * self.input_scale.square())
        l0 = (found.codes.values > 0).sum(1).float().mean()
        figures = {"fvu": fvu, "l0": l0, "dead_share": self.dead.float().mean(), **found.parts}
        self.log_dict({f"train/{name}": value for name, value in figures.items()}, sync_dist=True)


def sae_learning_rate(width: int) -> float:
    """`2e-4 · √(2¹⁴ / M)` for `M` latents (Gao et al. 2024, section A.3)."""
    return 2e-4 * math.sqrt(2**14 / width)


def trapezoid(update: int, updates: int, *, warmup: int, decay: float) -> float:
    """Factor of the learning rate: linear rise over `warmup` updates, linear fall to 0 over the last `decay` share."""
    # Not from 0, at which the first update would do nothing.
    rise = (update + 1) / warmup if warmup else 1.0
    fall = (updates - update) / (decay * updates) if decay else 1.0
    return max(0.0, min(1.0, rise, fall))
