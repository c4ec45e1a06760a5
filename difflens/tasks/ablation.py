"""`task=ablation`: does silencing the located features take the attribute away, and do other features not?"""

from collections.abc import Mapping

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from difflens.attribution.select import ablation_sets
from difflens.attribution.statistics import CodeStatistics
from difflens.methods.difflens import FeatureEdit, selected_latents
from difflens.report.figures import draw_ablation
from difflens.stages.activations import open_store
from difflens.stages.attribution import Located, locate_features
from difflens.stages.plans import judged_labels, learning_plan, named_classes
from difflens.store.run import Run
from difflens.study.workbench import Workbench
from difflens.tasks.experiment_files import keep
from difflens.training.steering_module import generate
from difflens.vocabulary import UNNAMED, FeatureSet


def ablation(cfg: DictConfig, run: Run) -> None:
    """Silence the top, random and bottom latents of each class in images that show it; write `ablation.json` and a plot."""
    bench = Workbench(cfg, run)
    located = locate_features(bench)
    activation = located.result.activation.sum(1)
    rank = cfg.attribution.rank
    sets = ablation_sets(located.result.scores, activation, size=cfg.task.size, seed=cfg.seed, rank=rank)
    with run.stage("ablation"):
        kept = {name: {kind: _kept(bench, located, name, group) for kind, group in sets[name].items()} for name in sets}
    data = {"size": cfg.task.size, "images": cfg.task.images, "kept": kept, "latents": sets}
    Console().print(_table(kept, cfg.task.size, bench.attribute.name))
    keep(run, "ablation", data, draw_ablation, (4.6, 3.0))


def _kept(bench: Workbench, located: Located, name: str, latents: tuple[int, ...]) -> float:
    """Share of images of a class that still show it with these latents silenced at every step of the window."""
    _, store = open_store(bench)
    labels = judged_labels(bench, store, bench.attribute)
    index = bench.attribute.index(name)
    rows = ((labels == index) & (named_classes(bench) == UNNAMED)).nonzero()[: bench.cfg.task.images, 0]
    edit = silencer(bench, located, FeatureSet(bench.attribute, {c: latents for c in bench.attribute.classes}))
    plan = learning_plan(bench).take(rows).towards(torch.full((len(rows),), index))
    made = generate(bench.trainer("ablation"), bench.model, plan, edit=edit)
    return float((bench.labels(made)[0] == index).double().mean())


def silencer(bench: Workbench, located: Located, features: FeatureSet) -> FeatureEdit:
    """An edit that scales the features to nothing."""
    latents, classes = selected_latents(features), bench.attribute.classes
    shape = located.statistics.mean.shape
    unused = CodeStatistics(
        latents, torch.zeros(*shape[:2], len(latents), *shape[3:]), torch.zeros(shape[1], len(latents))
    )
    edit = FeatureEdit(located.autoencoder, features, unused, site=bench.site, mode="scale", update=bench.method.update)
    return edit.with_strength(torch.zeros(len(classes)))  # type: ignore[return-value]


def _table(kept: Mapping[str, Mapping[str, float]], size: int, attribute: str) -> Table:
    table = Table(title=f"{attribute}: share of images that keep their class with {size} latents silenced")
    for column in ("class", "top", "random", "bottom"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name, shares in kept.items():
        table.add_row(name, *(f"{shares[kind]:.3f}" for kind in ("top", "random", "bottom")))
    return table
