"""Fit a miniature model from nothing: one visible loop with progress, checkpoints and an exact resume."""

import csv
import json
import math
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from difflens.models.devices import fast_autocast
from difflens.store.progress import Progressing


@dataclass(frozen=True)
class FitSettings:
    """How long and how a recipe is fitted; `ema` is the decay of the averaged weights, which are the ones exported.

    The learning rate warms up and falls to zero, and does so anew from each step of `restarts` (Loshchilov & Hutter, 2017),
    where training goes on from the averaged weights with a new optimiser.
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 200
    weight_decay: float = 0.0
    ema: float = 0.999
    seed: int = 0
    checkpoint_every: int = 500
    report_every: int = 1000
    restarts: Sequence[int] = ()

    def __post_init__(self) -> None:
        # YAML gives a list, which would not equal the same settings written in Python.
        object.__setattr__(self, "restarts", tuple(self.restarts))

    def generator(self, step: int) -> torch.Generator:
        """The random numbers of a step, which are the same whatever came before it."""
        # Further apart than a training has steps: two seeds never draw the same numbers.
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)


class Recipe(ABC):
    """What one miniature model is and what it learns from; a batch is a pure function of (seed, step)."""

    name: str

    @abstractmethod
    def build(self) -> nn.Module:
        """The untrained model."""

    @abstractmethod
    def loss(self, model: nn.Module, step: int, settings: FitSettings) -> Tensor:
        """The scalar loss of training step `step`."""

    @abstractmethod
    def report(self, model: nn.Module) -> dict[str, float]:
        """Figures on data never trained on."""

    @abstractmethod
    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the weights and their configuration."""


class _Training:
    """What a checkpoint holds: the model, its average and its optimiser after `step` steps."""

    def __init__(self, recipe: Recipe, settings: FitSettings) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.step = settings, 0
        self.model = recipe.build().train()
        self.average = recipe.build().eval().requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.new_optimiser()

    def new_optimiser(self) -> None:
        parameters, settings = self.model.parameters(), self.settings
        self.optimiser = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)

    def save(self, path: Path) -> None:
        parts = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimiser")}
        # Written beside and renamed: a kill in the middle leaves the checkpoint before.
        partial = path.with_name(f"{path.name}.partial")
        # The state of torch's own generator too, for what draws from that, such as dropout.
        rest = {"step": self.step, "settings": asdict(self.settings), "rng": torch.get_rng_state()}
        torch.save({**parts, **rest}, partial)
        os.replace(partial, path)

    def resume(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state["settings"] != asdict(self.settings):
            made_with = state["settings"]
            raise ValueError(f"{path} was made with other settings ({made_with}); delete {path.parent} to start again.")
        for name in ("model", "average", "optimiser"):
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["rng"])
        self.step = int(state["step"])

    @torch.no_grad()
    def update_average(self) -> None:
        # A young average forgets faster, or the untrained weights would stay in it.
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        for mean, value in zip(self.average.buffers(), self.model.buffers(), strict=True):
            mean.copy_(value)


def fit(recipe: Recipe, settings: FitSettings, *, workspace: Path, export_to: Path) -> dict[str, float]:
    """Train `recipe`, resuming from `workspace` if it holds a checkpoint, and export the averaged weights.

    Returns:
        The figures of the final report, which also stand in `export_to/training.json` beside the settings; those of all
        reports are in `export_to/training_log.csv`.

    Raises:
        ValueError: the checkpoint was made with other settings.
    """
    workspace.mkdir(parents=True, exist_ok=True)
    checkpoint, reports = workspace / "checkpoint.pt", workspace / "report.csv"
    now = _Training(recipe, settings)
    if checkpoint.exists():
        now.resume(checkpoint)
    with Progressing(recipe.name, settings.steps) as display:
        display.advance(now.step)
        while (step := now.step) < settings.steps:
            # At the beginning of a step, so that a run that resumes here makes the report its predecessor missed.
            if step and step % settings.report_every == 0:
                _log(reports, {"step": step, **recipe.report(now.average)})
            if step in settings.restarts:
                now.model.load_state_dict(now.average.state_dict())
                # The moments belong to weights that training has left.
                now.new_optimiser()
            for group in now.optimiser.param_groups:
                group["lr"] = settings.lr * learning_rate_factor(step, settings)
            with fast_autocast():
                loss = recipe.loss(now.model, step, settings)
            loss.backward()  # type: ignore[no-untyped-call]
            # What is returned, and logged, is the norm before clipping.
            norm = nn.utils.clip_grad_norm_(now.model.parameters(), 1.0)
            now.optimiser.step()
            now.optimiser.zero_grad()
            now.update_average()
            now.step, value = step + 1, float(loss.detach())
            display.advance(note=f"loss {value:.4f}")
            if now.step % 50 == 0:
                row = {"step": now.step, "loss": value, "norm": float(norm), "time": time.time()}
                _log(workspace / "log.csv", row)
            if now.step % settings.checkpoint_every == 0 or now.step == settings.steps:
                now.save(checkpoint)
    # The averaged weights are reported, since they are the ones exported.
    figures = recipe.report(now.average)
    _log(reports, {"step": settings.steps, **figures})
    recipe.export(now.average, export_to)
    # safetensors writes files that their owner alone can read.
    for file in (file for file in export_to.rglob("*") if file.is_file()):
        file.chmod(0o644)
    shutil.copy(reports, export_to / "training_log.csv")
    summary = {"recipe": recipe.name, "settings": asdict(settings), "figures": figures}
    (export_to / "training.json").write_text(json.dumps(summary, indent=2) + "\n")
    return figures


def batch_indices(step: int, settings: FitSettings, pool: int) -> Tensor:
    """The rows of training step `step`: a new shuffle of the whole pool for every epoch."""
    # Whole batches alone; what an epoch leaves over comes in others, whose order is another.
    per_epoch = pool // settings.batch
    epoch, position = divmod(step, per_epoch)
    order = torch.randperm(pool, generator=torch.Generator().manual_seed(settings.seed * 7_919 + epoch))
    return order[position * settings.batch : (position + 1) * settings.batch]


def learning_rate_factor(step: int, settings: FitSettings) -> float:
    """Linear warm-up, then half a cosine down to zero, where the next restart is or the end."""
    start = max((restart for restart in settings.restarts if restart <= step), default=0)
    end = min((restart for restart in settings.restarts if restart > step), default=settings.steps)
    step, steps = step - start, end - start
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, steps - settings.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def _log(path: Path, row: dict[str, float]) -> None:
    """Add a row in place of those of this step and of later ones, which an interrupted or finished run has left."""
    kept: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [older for older in csv.DictReader(file) if int(older["step"]) < row["step"]]
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerows([*kept, row])
    os.replace(partial, path)
