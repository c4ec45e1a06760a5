"""`task=miniature`: train the embedded world's models from nothing."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from difflens.miniature.diffusion_recipes import GeneratorRecipe, PipelineRecipe, VaeRecipe, load_vae
from difflens.miniature.fit import FitSettings, Recipe, fit
from difflens.miniature.judges import load_judge
from difflens.miniature.photo_recipes import PhotoRecipe, PhotoVaeRecipe
from difflens.miniature.photographs import FaceRecipe, load_faces
from difflens.miniature.population import named_population
from difflens.miniature.reader_recipes import ClipRecipe, JudgeRecipe
from difflens.store.run import Run
from difflens.study.values import built

KINDS: Mapping[str, type[Recipe] | type[FaceRecipe]] = {
    "judge": JudgeRecipe,
    "clip": ClipRecipe,
    "vae": VaeRecipe,
    "generator": GeneratorRecipe,
    "text_to_image": PipelineRecipe,
    "faces": FaceRecipe,
    "photo_vae": PhotoVaeRecipe,
    "photo_generator": PhotoRecipe,
}
_NAMED: Mapping[str, Callable[[str], Any]] = {
    "population": named_population,
    "judge": load_judge,
    "autoencoder": load_vae,
    "photographs": load_faces,
}


def make_recipe(kind: str, **settings: Any) -> Recipe | FaceRecipe:
    """A recipe of that kind; a population is named in its settings, a judge, an autoencoder or photographs by their folder.

    Raises:
        ValueError: there is no such kind, it does not take these settings, or what they name is not there.
    """
    if kind not in KINDS:
        raise ValueError(f"task.recipes: there is no kind {kind!r}; there are {', '.join(KINDS)}.")
    _check_names(settings, KINDS[kind], f"a recipe of kind {kind}")
    return KINDS[kind](**{name: _NAMED[name](value) if name in _NAMED else value for name, value in settings.items()})


def _check_names(settings: Mapping[str, Any], kind: type, what: str) -> None:
    known = [field.name for field in fields(kind)]
    if unknown := [name for name in settings if name not in known]:
        raise ValueError(f"task.recipes: {what} has no {', '.join(map(repr, unknown))}; it has {', '.join(known)}.")


def miniature(cfg: DictConfig, run: Run) -> None:
    """Fit and export every model named in `task.models`, in that order, resuming what a stopped run left."""
    # All names before the first training: a slip in the last would be found out after hours.
    if unknown := [name for name in cfg.task.models if name not in cfg.task.recipes]:
        raise ValueError(f"task.models names {unknown[0]!r}; the recipes are {list(cfg.task.recipes)}.")
    for name in cfg.task.models:
        # Only now: a recipe loads models that those before it have just written.
        settings: Any = OmegaConf.to_container(cfg.task.recipes[name], resolve=True)
        if settings["recipe"]["kind"] == "photo_generator":
            # What a render shows is known; photographs are read, by the judges of the configuration.
            settings["recipe"] |= {role: built(cfg, f"judge.{role}") for role in ("labels", "scores")}
        recipe = make_recipe(**settings["recipe"])
        if isinstance(recipe, FaceRecipe):
            with run.stage(name):
                recipe.make(Path(cfg.task.workspace) / name)
            continue
        _check_names(settings["fit"], FitSettings, f"{name}.fit")
        budget = FitSettings(**settings["fit"])
        with run.stage(name):
            export_to = Path(cfg.task.export_to) / settings.get("folder", name)
            figures = fit(recipe, budget, workspace=Path(cfg.task.workspace) / name, export_to=export_to)
        run.say(f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in figures.items())}")
