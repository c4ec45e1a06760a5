"""Fit a miniature model from nothing: one visible loop with progress, checkpoints and an exact resume."""

import csv
import json
import math
import os
import shutil
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from difflens.models.devices import fast_autocast


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
    restarts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "restarts", tuple(self.restarts))


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


def fit(recipe: Recipe, settings: FitSettings, *, workspace: Path, export_to: Path) -> dict[str, float]:
    """Train `recipe`, resuming from `workspace` if it holds a checkpoint, and export the averaged weights.

    Returns:
        The figures of the final report, which also stand in `export_to/training.json` beside the settings; those of all
        reports are in `export_to/training_log.csv`.
    """
    workspace.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    model = recipe.build().train()
    average = recipe.build().eval().requires_grad_(False)
    average.load_state_dict(model.state_dict())
    optimiser = _optimiser(model, settings)
    first = _resume(workspace, model, average, optimiser, settings)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    ) as progress:
        bar = progress.add_task(recipe.name, total=settings.steps, completed=first)
        for step in range(first, settings.steps):
            if step and step % settings.report_every == 0:
                _log(workspace / "report.csv", {"step": step, **recipe.report(average)})
            if step in settings.restarts:
                model.load_state_dict(average.state_dict())
                optimiser = _optimiser(model, settings)
            for group in optimiser.param_groups:
                group["lr"] = settings.lr * learning_rate_factor(step, settings)
            with fast_autocast():
                loss = recipe.loss(model, step, settings)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            _average(average, model, min(settings.ema, (1 + step) / (10 + step)))
            value = float(loss.detach())
            progress.update(bar, advance=1, description=f"{recipe.name} loss {value:.4f}")
            done = step + 1
            if done % 50 == 0:
                _log(workspace / "log.csv", {"step": done, "loss": value, "norm": float(norm), "time": time.time()})
            if done % settings.checkpoint_every == 0 or done == settings.steps:
                _checkpoint(workspace, model, average, optimiser, done, settings)
    figures = recipe.report(average)
    _log(workspace / "report.csv", {"step": settings.steps, **figures})
    recipe.export(average, export_to)
    _record(recipe, settings, figures, workspace / "report.csv", export_to)
    return figures


def batch_indices(step: int, settings: FitSettings, pool: int) -> Tensor:
    """The rows of training step `step`: a new shuffle of the whole pool for every epoch."""
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


def _optimiser(model: nn.Module, settings: FitSettings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for mean, value in zip(average.buffers(), model.buffers(), strict=True):
        mean.copy_(value)


def _checkpoint(
    workspace: Path,
    model: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    step: int,
    settings: FitSettings,
) -> None:
    state = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
        "settings": asdict(settings),
        "rng": torch.get_rng_state(),
    }
    partial = workspace / "checkpoint.pt.partial"
    torch.save(state, partial)
    os.replace(partial, workspace / "checkpoint.pt")


def _resume(
    workspace: Path, model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, settings: FitSettings
) -> int:
    path = workspace / "checkpoint.pt"
    if not path.exists():
        return 0
    state: dict[str, Any] = torch.load(path, weights_only=True)
    if state["settings"] != asdict(settings):
        raise ValueError(
            f"{path} was made with other settings ({state['settings']}); delete {workspace} to start again."
        )
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["rng"])
    return int(state["step"])


def _record(recipe: Recipe, settings: FitSettings, figures: dict[str, float], reports: Path, export_to: Path) -> None:
    shutil.copy(reports, export_to / "training_log.csv")
    summary = {"recipe": recipe.name, "settings": asdict(settings), "figures": figures}
    (export_to / "training.json").write_text(json.dumps(summary, indent=2) + "\n")


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
