"""`task=miniature`: train the embedded world's models from nothing."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from difflens.miniature.fit import fit


def miniature(cfg: DictConfig) -> None:
    """Fit and export every model named in `task.models`, in that order, resuming what a stopped run left."""
    for name in cfg.task.models:
        if name not in cfg.task.recipes:
            raise ValueError(f"task.models names {name!r}; the recipes are {list(cfg.task.recipes)}.")
        recipe = instantiate(cfg.task.recipes[name].recipe)
        settings = instantiate(cfg.task.recipes[name].fit)
        figures = fit(
            recipe,
            settings,
            workspace=Path(cfg.task.workspace) / name,
            export_to=Path(cfg.task.export_to) / name,
        )
        print(name, {key: round(value, 4) for key, value in figures.items()})
