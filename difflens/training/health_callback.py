"""An SAE's health while it trains, on tokens of images that never train it."""

import lightning as L
import torch
from torch import Tensor

from difflens.sae.health import DENSITY_EDGES
from difflens.training.loggers import Tracker
from difflens.training.sae_module import SaeModule


class HealthOverTraining(L.Callback):
    """Measures FVU (pooled and per step), L0, dead share and densities `times` times, evenly over the training.

    Args:
        tokens: held-out tokens [T, D], raw.
        steps: the denoising step of each [T].
        tracker: where the figures go.
        times: how often.
    """

    def __init__(self, tokens: Tensor, steps: Tensor, tracker: Tracker, *, times: int = 10) -> None:
        self.tokens, self.steps, self.tracker, self.times = tokens, steps, tracker, times

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        """Measure where an interval ends."""
        assert isinstance(module, SaeModule)
        if trainer.is_global_zero and trainer.global_step % max(1, module.updates // self.times) == 0:
            self._measure(module, trainer.global_step)

    @torch.inference_mode()
    def _measure(self, module: SaeModule, update: int) -> None:
        sae, meter = module.sae, module.health
        training, _ = sae.training, sae.eval()
        meter.reset()
        for tokens, steps in zip(self.tokens.split(4096), self.steps.split(4096), strict=True):
            scaled = tokens.to(module.device).float() * module.input_scale
            codes = sae.encode(scaled)
            meter.update(scaled, sae.decode(codes), codes, steps.to(module.device))
        sae.train(training)
        health = meter.compute()
        figures = {"fvu": health.fvu, "l0": health.l0, "dead_share": health.dead_share}
        figures |= {f"fvu_at_step/{step:03d}": fvu for step, fvu in enumerate(health.fvu_per_step)}
        self.tracker.scalars({"sae/update": update, **{f"sae/{name}": value for name, value in figures.items()}})
        self.tracker.histogram("sae/density", health.density_histogram, DENSITY_EDGES)
