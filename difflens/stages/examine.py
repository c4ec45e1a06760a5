"""What may be wrong with a study, measured: whether latents tell the attribute, and whether silencing them takes it away."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difflens.attribution.select import ablation_sets
from difflens.attribution.separation import best_latent
from difflens.attribution.statistics import CodeStatistics
from difflens.data.activations import ActivationStore
from difflens.methods.difflens import FeatureEdit, selected_latents
from difflens.metrics.paired import compare_hits
from difflens.sae.base import SparseAutoencoder
from difflens.stages.activations import collect
from difflens.stages.attribution import Located
from difflens.stages.calibrate import Prepared
from difflens.stages.generate import Steered
from difflens.stages.plans import learning_labels
from difflens.study.workbench import Workbench
from difflens.training.steering_module import generate
from difflens.vocabulary import FeatureSet

PER_CLASS = 32
"""Evaluation images of each class whose latents are silenced: enough to tell one in five from none."""

SHARES = (0.25, 0.5, 0.75)
"""Where on the trajectory codes are read, as shares of the steps."""


def examine(bench: Workbench, prepared: Prepared, pairs: Steered) -> dict[str, Any]:
    """What the report's diagnosis needs beside what other stages keep; nothing for a method without sparse features."""
    if prepared.located is None:
        return {}
    return {
        "separation": told_apart(bench, prepared.located),
        "silencing": silenced(bench, prepared.located, pairs),
    }


def told_apart(bench: Workbench, located: Located) -> dict[str, Any] | None:
    """How well the best latent tells the attribute, and what else it tells (see `BestLatent`); None of too few images."""
    # The statistics' artifact stands for the SAE, the labels, the attributes and how many images.
    spec = {"statistics": located.artifact.fingerprint, "shares": list(SHARES)}

    def make(folder: Path) -> None:
        _, store = collect(bench)
        attributes = [bench.attribute, *bench.others()]
        labels = {each.name: learning_labels(bench, store, each) for each in attributes}
        known = torch.stack([each >= 0 for each in labels.values()]).all(0)
        rows = known.nonzero()[: bench.cfg.attribution.statistics_images, 0]
        codes = summed_codes(located.autoencoder, store, rows, batch=bench.model.micro_batch)
        labels = {name: each[rows] for name, each in labels.items()}
        found = best_latent(codes, labels, {each.name: each.classes for each in attributes}, bench.attribute.name)
        told = None if found is None else {**found._asdict(), "images": len(rows)}
        (folder / "separation.json").write_text(json.dumps(told))

    with bench.run.stage("examine"):
        artifact = bench.run.artifact("separation", spec, make)
    return json.loads((artifact.folder / "separation.json").read_text())


@torch.inference_mode()
def summed_codes(autoencoder: SparseAutoencoder, store: ActivationStore, rows: Tensor, *, batch: int) -> Tensor:
    """Codes [rows, M] of stored images, summed over positions and over the steps at `SHARES`."""
    total = torch.zeros(len(rows), autoencoder.width)
    for step in sorted({min(int(share * store.steps), store.steps - 1) for share in SHARES}):
        maps = store.at_step(step)
        parts = [autoencoder.codes_of_map(maps[part].float()).sum((-1, -2)) for part in rows.split(batch)]
        total += torch.cat(parts)
    return total


def silenced(bench: Workbench, located: Located, pairs: Steered) -> dict[str, Any]:
    """How many evaluation images keep their class with their located latents silenced, and with others that fire as much.

    A small form of `task=ablation`, on images that taught nothing and by the judge that labels; `unmeasured` says why there
    is none.
    """
    attribute, scores, activation = bench.attribute, located.result.scores, located.result.activation.sum(1)
    rule = {"seed": bench.cfg.seed, "rank": bench.cfg.attribution.rank}
    # Classes differ in how many latents were located, and the controls of each are to match its own.
    sizes = {name: len(group) for name, group in located.features.latents.items() if group}
    try:
        sets = {name: ablation_sets(scores, activation, size=size, **rule)[name] for name, size in sizes.items()}
    except ValueError as error:
        return {"unmeasured": str(error)}
    rows = torch.cat([(pairs.labels == attribute.index(name)).nonzero()[:PER_CLASS, 0] for name in sets])
    if not len(rows):
        return {"unmeasured": f"no evaluation image shows a class of {attribute.name}."}
    spec = {
        "statistics": located.artifact.fingerprint,
        "originals": pairs.artifacts[0].fingerprint,
        "images": PER_CLASS,
        "latents": sets,
        "update": bench.method.update,
    }

    def make(folder: Path) -> None:
        labels = pairs.labels[rows]
        # Towards the class that each image shows: latents are silenced by target, so one pass serves all classes.
        plan = pairs.plan.take(rows).towards(labels)
        kept = {}
        for kind in ("top", "random"):
            group = {name: sets[name][kind] if name in sets else () for name in attribute.classes}
            edit = silencer(bench, located, FeatureSet(attribute, group))
            made = generate(bench.trainer("examine"), bench.model, plan, edit=edit)
            kept[kind] = bench.labels(made)[0] == labels
        found = compare_hits(kept["random"], kept["top"])
        shares = {kind: float(each.double().mean()) for kind, each in kept.items()}
        # No two ranks may write the same file.
        if not bench.run.rank:
            told = {"images": len(rows), "latents": sizes, **shares, **vars(found)}
            (folder / "silencing.json").write_text(json.dumps(told))

    with bench.run.stage("examine"):
        artifact = bench.run.artifact("silencing", spec, make, together=True)
    return json.loads((artifact.folder / "silencing.json").read_text())


def silencer(bench: Workbench, located: Located, features: FeatureSet) -> FeatureEdit:
    """An edit that scales to nothing the features of each image's target class."""
    latents, classes = selected_latents(features), bench.attribute.classes
    shape = located.statistics.mean.shape
    # `scale` reads no usual activity; only the shapes have to fit.
    unused = CodeStatistics(
        latents, torch.zeros(*shape[:2], len(latents), *shape[3:]), torch.zeros(shape[1], len(latents))
    )
    # By the method's own update, since what an edit can do depends on it (METHOD section 5).
    edit = FeatureEdit(located.autoencoder, features, unused, site=bench.site, mode="scale", update=bench.method.update)
    return edit.with_strength(torch.zeros(len(classes)))  # type: ignore[return-value]
