"""`task=miniature`: train the embedded world's models from nothing."""

from pathlib import Path

from omegaconf import DictConfig

from difflens.miniature.fit import fit
from difflens.store.run import Run
from difflens.study.values import built


def miniature(cfg: DictConfig, run: Run) -> None:
    """Fit and export every model named in `task.models`, in that order, resuming what a stopped run left."""
    for name in cfg.task.models:
        if name not in cfg.task.recipes:
            raise ValueError(f"task.models names {name!r}; the recipes are {list(cfg.task.recipes)}.")
        recipe = built(cfg, f"task.recipes.{name}.recipe")
        settings = built(cfg, f"task.recipes.{name}.fit")
        with run.stage(name):
            workspace = Path(cfg.task.workspace) / name
            export_to = Path(cfg.task.export_to) / cfg.task.recipes[name].get("folder", name)
            figures = fit(recipe, settings, workspace=workspace, export_to=export_to)
        run.say(f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in figures.items())}")
