"""Callbacks of trainers: the stage's progress, an SAE's health while it trains, and SIGTERM in a distributed run."""

import signal
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar
from torch import Tensor

from difflens.sae.health import DENSITY_EDGES
from difflens.store.progress import Progressing
from difflens.training.loggers import Tracker
from difflens.training.sae_module import SaeModule


class StageProgress(ProgressBar):
    """In the place of Lightning's own bars: the stage's name, and plain lines where output is piped."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._enabled = True
        self._display: Progressing | None = None

    def disable(self) -> None:
        """Lightning asks for silence on all ranks but the first."""
        self._enabled = False

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Count updates."""
        self._open(trainer.estimated_stepping_batches)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Updates, not batches: a resumed training goes on where it was."""
        if self._display is not None:
            self._display.advance(trainer.global_step - self._display.done)

    def on_predict_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Count batches."""
        self._open(sum(trainer.num_predict_batches))

    def on_predict_batch_end(self, *_: Any) -> None:
        """One more batch."""
        if self._display is not None:
            self._display.advance()

    def teardown(self, *_: Any, **__: Any) -> None:
        """Leave the terminal as it was, after an exception too."""
        if self._display is not None:
            self._display.close()
            self._display = None

    def on_exception(self, *_: Any) -> None:
        """As in the end, which Lightning leaves out then."""
        self.teardown()

    def _open(self, total: float) -> None:
        if self._enabled:
            self._display = Progressing(self.name, int(total) if 0 < total < float("inf") else None)


class HealthOverTraining(L.Callback):
    """Measures FVU (pooled and per step), L0, dead share and densities `times` times, on images that never train the SAE.

    Raw tokens [T, D] and the denoising step of each [T] are measured, and the figures told to the tracker.
    """

    def __init__(self, tokens: Tensor, steps: Tensor, tracker: Tracker, *, times: int = 10) -> None:
        self.tokens, self.steps, self.tracker, self.times = tokens, steps, tracker, times

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        """Measure where an interval ends."""
        assert isinstance(module, SaeModule)
        # After an update all ranks have the same weights: one measures for all.
        if trainer.is_global_zero and trainer.global_step % max(1, module.updates // self.times) == 0:
            self._measure(module, trainer.global_step)

    @torch.inference_mode()
    def _measure(self, module: SaeModule, update: int) -> None:
        sae, meter = module.sae, module.health
        # As when sampling: in training mode BatchTopK would take its threshold from these very tokens.
        training, _ = sae.training, sae.eval()
        meter.reset()
        for tokens, steps in zip(self.tokens.split(4096), self.steps.split(4096), strict=True):
            # The SAE sees scaled tokens until the scale is folded in at the end.
            scaled = tokens.to(module.device).float() * module.input_scale
            codes = sae.encode(scaled)
            meter.update(scaled, sae.decode(codes), codes, steps.to(module.device))
        sae.train(training)
        health = meter.compute()
        figures = {"fvu": health.fvu, "l0": health.l0, "dead_share": health.dead_share}
        figures |= {f"fvu_at_step/{step:03d}": fvu for step, fvu in enumerate(health.fvu_per_step)}
        self.tracker.scalars({"sae/update": update, **{f"sae/{name}": value for name, value in figures.items()}})
        self.tracker.histogram("sae/density", health.density_histogram, DENSITY_EDGES)


class OwnSigterm(L.Callback):
    """Keeps the program's own answer to SIGTERM while several processes work together.

    Lightning's asks the other ranks from inside the handler, while they wait for the step that it interrupted: no end.
    """

    def __init__(self) -> None:
        # Asked now, before Lightning puts its own in the place.
        self.answer = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning has registered its own by now, and puts this one back when it is done."""
        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, self.answer)

    on_predict_start = on_train_start
