"""`task=ablation`: does silencing the located features take the attribute away, and do other features not?"""

from collections.abc import Mapping

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from difflens.attribution.select import ablation_sets
from difflens.data.prompts import neutral_plan
from difflens.report.figures import draw_ablation
from difflens.stages.attribution import Located, locate_features
from difflens.stages.examine import silencer
from difflens.stages.plans import originals
from difflens.store.run import Run
from difflens.study.workbench import Workbench
from difflens.tasks.experiment_files import keep
from difflens.training.steering_module import generate
from difflens.vocabulary import FeatureSet, GenerationPlan


def ablation(cfg: DictConfig, run: Run) -> None:
    """Silence latents of each class in images that show it, which nothing has seen; write `ablation.json` and a plot."""
    bench = Workbench(cfg, run)
    located = locate_features(bench)
    activation = located.result.activation.sum(1)
    # Ranked as features are selected, or other latents would be on trial than those that are edited.
    rank = cfg.attribution.rank
    sets = ablation_sets(located.result.scores, activation, size=cfg.task.size, seed=cfg.seed, rank=rank)
    plan = fresh_plan(bench)
    labels = bench.labels(originals(bench, plan, stage="ablation")[1])[0]
    kept: dict[str, dict[str, float]] = {}
    mass: dict[str, dict[str, float]] = {}
    with run.stage("ablation"):
        for index, (name, groups) in enumerate(sets.items()):
            # Where the class is not shown, nothing can be taken away.
            rows = (labels == index).nonzero()[: cfg.task.images, 0]
            if not len(rows):
                raise ValueError(
                    f"none of {len(labels)} images is {name!r} ({bench.attribute.name}); raise task.images."
                )
            kept[name] = {kind: _kept(bench, located, name, plan.take(rows), group) for kind, group in groups.items()}
            # A set that hardly fires proves nothing when it is silenced, so how much each fires is told too.
            mass[name] = {kind: float(activation[index, list(group)].sum()) for kind, group in groups.items()}
    data = {"size": cfg.task.size, "images": cfg.task.images, "kept": kept, "latents": sets, "activation": mass}
    Console().print(_table(kept, cfg.task.size, bench.attribute.name))
    keep(run, "ablation", data, draw_ablation, (4.6, 3.0))


def fresh_plan(bench: Workbench) -> GenerationPlan:
    """Images of a seed of this task's own: three times as many of each class as are counted, if classes were equal."""
    task, count = bench.cfg.task, 3 * bench.cfg.task.images * len(bench.attribute.classes)
    if bench.prompts is None:
        return GenerationPlan(task.base_seed, torch.arange(count))
    prompts = bench.prompts.studied
    return neutral_plan(prompts, -(-count // len(prompts)), base_seed=task.base_seed)


def _kept(bench: Workbench, located: Located, name: str, plan: GenerationPlan, latents: tuple[int, ...]) -> float:
    """Share of images of a class that still show it with these latents silenced at every step."""
    index = bench.attribute.index(name)
    # The same latents for every class: whatever an image's target, all of them fall silent.
    edit = silencer(bench, located, FeatureSet(bench.attribute, {c: latents for c in bench.attribute.classes}))
    pushed = plan.towards(torch.full((len(plan.image_ids),), index))
    made = generate(bench.trainer("ablation"), bench.model, pushed, edit=edit)
    return float((bench.labels(made)[0] == index).double().mean())


def _table(kept: Mapping[str, Mapping[str, float]], size: int, attribute: str) -> Table:
    table = Table(title=f"{attribute}: share of images that keep their class with {size} latents silenced")
    for column in ("class", "top", "random", "bottom"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name, shares in kept.items():
        table.add_row(name, *(f"{shares[kind]:.3f}" for kind in ("top", "random", "bottom")))
    return table
