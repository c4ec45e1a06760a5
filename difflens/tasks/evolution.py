"""`task=evolution`: when each class becomes decodable, when its latents fire, and where in the image (METHOD 10.4)."""

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from difflens.report.figures import draw_evolution
from difflens.stages import probe as probe_task
from difflens.stages.attribution import locate_features
from difflens.stages.plans import evaluation_plan
from difflens.store.run import Run
from difflens.study.workbench import Workbench
from difflens.tasks.experiment_files import keep


def evolution(cfg: DictConfig, run: Run) -> None:
    """Follow `task.images` evaluation images, which trained nothing; write `evolution.json` and `evolution.svg`."""
    bench = Workbench(cfg, run)
    located, probe = locate_features(bench), probe_task.fit(bench)[1]
    # What is stored was made by all ranks; these few images are one's work.
    if run.rank:
        return
    classes, latents = bench.attribute.classes, located.features.latents
    plan = evaluation_plan(bench).part(0, cfg.task.images)
    read: list[Tensor] = []
    activity: dict[str, list[Tensor]] = {name: [] for name in classes}
    made: list[Tensor] = []
    with run.stage("evolution"), torch.inference_mode():
        for batch in bench.model.sample(plan, record=bench.site):
            assert batch.activations is not None
            # Eight bits, as the judge sees them in every other stage.
            made.append((batch.images * 255).round().byte())
            steps = [h.float() for h in batch.activations.unbind(1)]
            read.append(torch.stack([probe(h, step).argmax(-1) for step, h in enumerate(steps)]))
            for name in classes:
                chosen = torch.tensor(latents[name])
                maps = [located.autoencoder.codes_of_latents(h, chosen).mean(1) for h in steps]
                activity[name].append(torch.stack(maps))
    labels, _ = bench.labels(torch.cat(made))
    data = describe(
        classes, labels, torch.cat(read, 1), {name: torch.cat(parts, 1) for name, parts in activity.items()}
    )
    for name in classes:
        first, most = data["decodable"][name], data["busiest"][name]
        run.say(f"{name}: decodable (recall ≥ 0.9) from step {first} on, fires most at step {most}")
    about = {"attribute": bench.attribute.name, "images": len(labels)}
    keep(run, "evolution", {**about, **data}, draw_evolution, (7.6, 5.2))


def describe(
    classes: tuple[str, ...], labels: Tensor, read: Tensor, activity: dict[str, Tensor], *, recall: float = 0.9
) -> dict[str, Any]:
    """Recall per class and step, activity on own and other images, the busiest step and the mean map there.

    Args:
        classes: of the attribute.
        labels: the judge's class of each finished image [N].
        read: the probe's class at every step [steps, N].
        activity: class → mean code of its latents [steps, N, H, W].
        recall: from which recall on a class counts as decodable.
    """
    parts: dict[str, dict[str, Any]] = {name: {} for name in ("recall", "firing", "busiest", "maps", "decodable")}
    for index, name in enumerate(classes):
        own, codes = labels == index, activity[name]
        hits = (read[:, own] == index).double().mean(1)
        per_step = {key: codes[:, rows].mean((1, 2, 3)).tolist() for key, rows in (("own", own), ("other", ~own))}
        busiest = int(codes[:, own].mean((1, 2, 3)).argmax())
        above = (hits >= recall).nonzero()[:, 0].tolist()
        # From where on it stays decodable, not the first step that happens to be.
        stays = next((s for s in above if all(t in above for t in range(s, len(hits)))), None)
        values = (hits.tolist(), per_step, busiest, codes[busiest, own].mean(0).tolist(), stays)
        for part, value in zip(parts.values(), values, strict=True):
            part[name] = value
    return {"classes": list(classes), **parts}
