"""`task=ablation`: does silencing the located features take the attribute away, and do other features not?"""

from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor

from difflens.attribution.select import ablation_sets
from difflens.data.prompts import neutral_plan
from difflens.metrics.functional import wilson_interval
from difflens.metrics.paired import compare_hits
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
    # By the judge that labelled nothing: features were located by the other one's answers.
    labels = bench.scored(originals(bench, plan, stage="ablation")[1])
    found: dict[str, dict[str, Any]] = {}
    with run.stage("ablation"):
        for index, (name, groups) in enumerate(sets.items()):
            # Where the class is not shown, nothing can be taken away.
            rows = (labels == index).nonzero()[: cfg.task.images, 0]
            if not len(rows):
                raise ValueError(
                    f"none of {len(labels)} images is {name!r} ({bench.attribute.name}); raise task.images."
                )
            kept = {kind: _kept(bench, located, name, plan.take(rows), group) for kind, group in groups.items()}
            shares = {kind: float(each.double().mean()) for kind, each in kept.items()}
            found[name] = {
                "images": len(rows),
                "kept": shares,
                "intervals": {kind: _interval(each) for kind, each in kept.items()},
                "p": compare_hits(kept["random"], kept["top"]).p,
                # A set that hardly fires proves nothing when it is silenced, so how much each fires is told too.
                "activation": {kind: float(activation[index, list(group)].sum()) for kind, group in groups.items()},
                "latents": groups,
            }
    Console().print(_table(found, cfg.task.size, bench.attribute.name))
    keep(run, "ablation", {"size": cfg.task.size, "classes": found}, draw_ablation, (4.6, 3.0))


def fresh_plan(bench: Workbench) -> GenerationPlan:
    """Images of a seed of this task's own: three times as many of each class as are counted, if classes were equal."""
    task, count = bench.cfg.task, 3 * bench.cfg.task.images * len(bench.attribute.classes)
    if bench.prompts is None:
        return GenerationPlan(task.base_seed, torch.arange(count))
    prompts = bench.prompts.studied
    return neutral_plan(prompts, -(-count // len(prompts)), base_seed=task.base_seed)


def _kept(bench: Workbench, located: Located, name: str, plan: GenerationPlan, latents: tuple[int, ...]) -> Tensor:
    """Which images of a class still show it with these latents silenced at every step."""
    index = bench.attribute.index(name)
    # The same latents for every class: whatever an image's target, all of them fall silent.
    edit = silencer(bench, located, FeatureSet(bench.attribute, {c: latents for c in bench.attribute.classes}))
    pushed = plan.towards(torch.full((len(plan.image_ids),), index))
    made = generate(bench.trainer("ablation"), bench.model, pushed, edit=edit)
    return bench.scored(made) == index


def _interval(hits: Tensor) -> list[float]:
    return [float(end) for end in wilson_interval(hits.sum(), len(hits))]


def _table(found: dict[str, dict[str, Any]], size: int, attribute: str) -> Table:
    table = Table(title=f"{attribute}: share of images that keep their class with {size} latents silenced (95 %)")
    for column in ("class", "images", "top", "random", "bottom", "p, top and random"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name, row in found.items():
        shares = (f"{row['kept'][kind]:.3f} ({low:.2f}–{high:.2f})" for kind, (low, high) in row["intervals"].items())
        table.add_row(name, str(row["images"]), *shares, f"{row['p']:.2g}")
    return table
