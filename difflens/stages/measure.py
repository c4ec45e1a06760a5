"""Measuring a pair of image sets: one row per method, by the second judge, on images never used before."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from difflens.data.folder import ImageFolder, Reference, collect_reference
from difflens.judges.faces import float_pieces
from difflens.judges.protocol import ReferenceStatistics
from difflens.judges.weights import free
from difflens.metrics.paired import Outcomes
from difflens.stages.listed import listed_measures, measure_own, metrics_spec, own_metrics
from difflens.stages.oddness import denoising_errors, oddness
from difflens.stages.reading import Reading, Study, protocol, read_images, read_judge
from difflens.stages.rows import (
    NOWHERE,
    agreement,
    arrival,
    build_row,
    cost,
    fd_ends,
    obedience,
    of_moved,
    outcomes_of,
    promised,
    shown,
    smaller_subsets,
    with_intervals,
)
from difflens.stages.tracked import track_metrics
from difflens.store.artifacts import Artifact
from difflens.study.values import built, plain
from difflens.study.workbench import Workbench

if TYPE_CHECKING:
    from difflens.stages.generate import Steered


def check_measures(bench: Workbench) -> None:
    """Build what measures and look at a folder of reference images before any stage, so that what is missing is told at once.

    Raises:
        ValueError: a file or folder is not there, or the list of measures is broken.
    """
    listed_measures(bench.cfg)
    metrics_of(bench)
    bench.extractor  # noqa: B018
    _reference_spec(bench)


def metrics_of(bench: Workbench) -> dict[str, Any]:
    """The metrics of classes of one's own, by key."""
    return bench.once("own metrics", lambda: own_metrics(bench.cfg))


def evaluate(bench: Workbench, steered: "Steered", *, unseen: bool = False) -> dict[str, Any]:
    """Write `metrics.json`: the row of the originals and that of the mitigation; of unseen prompts `metrics_unseen.json`."""
    artifact, metrics = measured(bench, steered, unseen=unseen)
    bench.run.write_json("metrics_unseen.json" if unseen else "metrics.json", metrics)
    if not bench.run.rank:
        # Image by image, for methods of a sweep that are compared in pairs.
        name = "outcomes_unseen.safetensors" if unseen else "outcomes.safetensors"
        shutil.copyfile(artifact.folder / "outcomes.safetensors", bench.run.folder / name)
    if not unseen:
        track_metrics(bench, metrics)
    return metrics


def measured(bench: Workbench, steered: "Steered", *, unseen: bool = False) -> tuple[Artifact, dict[str, Any]]:
    """What `metrics.json` says, and the artifact that keeps it, with nothing written into the run's folder."""
    metric = bench.cfg.metric
    spec = {
        "steered": steered.artifacts[1].fingerprint,
        "judge": bench.scoring_judge.fingerprint,  # type: ignore[attr-defined]
        "extractor": bench.extractor.fingerprint,  # type: ignore[attr-defined]
        "reference": _reference_spec(bench),
        "reference_name": metric.reference_name,
        "kid_subset": metric.kid_subset,
        "others": [attribute.name for attribute in bench.others()],
        "target": bench.goals.pooled(steered.plan.prompts).tolist(),
        "targets": [bench.goals.of(prompt).tolist() for prompt in dict.fromkeys(steered.plan.prompts or ())],
        "subject": None if bench.subject is None else bench.subject.name,
        "unseen": unseen,
        **({} if steered.named is None else {"named": steered.named.artifacts[1].fingerprint}),
        "method": bench.cfg.mitigation.name,
        "missing_faces": bench.cfg.missing_faces,
        "recalls": plain(bench.cfg.judge.get("recalls") or {}),
        **metrics_spec(bench.cfg, metrics_of(bench)),
    }

    def make(folder: Path) -> None:
        found, outcomes = measure(bench, steered, unseen=unseen)
        # NaN is kept here as it was measured; the run's own file, for other programs, has null in its place.
        (folder / "metrics.json").write_text(json.dumps(found, allow_nan=True))
        save_file(outcomes.tensors(), folder / "outcomes.safetensors")

    with bench.run.stage("metrics"):
        artifact = bench.run.artifact("metrics", spec, make)
        metrics: dict[str, Any] = json.loads((artifact.folder / "metrics.json").read_text())
        # How numbers are called and rounded is not in the artifact: a new label measures nothing anew.
        metrics["measures"] = listed_measures(bench.cfg)
        if bench.cfg.published:
            metrics["published"] = plain(bench.cfg.published)
    return artifact, metrics


def measure(bench: Workbench, steered: "Steered", *, unseen: bool) -> tuple[dict[str, Any], Outcomes]:
    """The content of `metrics.json`, and what the method did to each image.

    Unseen prompts have no FID and KID, whose reference shows the studied ones.
    """
    study, method = study_of(bench), bench.cfg.mitigation.name
    reference = None if unseen else bench.once("reference", lambda: read_reference(bench))
    before = read_images(partial(float_pieces, steered.before), steered.image_ids, study, title="measuring original")
    after = _read_after(before, steered, study, title=f"measuring {method}")
    prompts, edited = steered.plan.prompts, steered.edited
    own, pieces = partial(measure_own, metrics_of(bench), study=study, prompts=prompts), float_pieces
    target = study.goals.pooled(prompts).tolist()
    outcomes = outcomes_of(before, after, study, steered)
    described = None
    if reference is not None:
        statistics = reference.statistics
        described = {"name": bench.cfg.metric.reference_name, "n": statistics.n, "sha256": statistics.sha256}
    # Images that one call couples are no independent draws: intervals count the groups (METHOD section 7).
    group = bench.model.micro_batch if bench.method.couples else 1
    metrics = {
        "model": bench.cfg.model.name,
        "attribute": bench.attribute.name,
        "classes": list(bench.attribute.classes),
        "target": dict(zip(bench.attribute.classes, target, strict=True)),
        "n": len(steered.image_ids),
        "protocol": {
            **protocol(study),
            **smaller_subsets(study, reference, len(steered.image_ids)),
            "reference": described,
            "assignment": bench.cfg.mitigation.assignment,
            "images_coupled": group,
            "class_of_its_own": bench.method.assigns,
            "steps": len(bench.model.timesteps),
            "safety_checker": getattr(bench.model, "safety_checker", None),
            "seed": bench.cfg.metric.base_seed,
        },
        "rows": [
            build_row("original", before, study, reference, prompts=prompts)
            | agreement(before, study, steered)
            | _obedience(bench, steered.named, "before")
            | fd_ends(shown(before, study, study.attribute), study, prompts, group=1)
            | own(reading=before, pieces=pieces(steered.before)),
            build_row(method, after, study, reference, original=before, edited=edited, prompts=prompts)
            # Where only shares are aimed at, there is no class that an image could have reached.
            | (
                arrival(before, after, study, steered, group=group) | of_moved(before, outcomes, study)
                if bench.method.assigns
                else NOWHERE
            )
            | promised(before, study, steered, prompts)
            | cost(steered)
            | {"oddness": _oddness(bench, steered, before, study)}
            | with_intervals(outcomes, study, prompts, group=group)
            | _obedience(bench, steered.named, "after")
            | own(reading=after, pieces=pieces(steered.after), originals=pieces(steered.before), edited=edited),
        ],
    }
    return metrics, outcomes


def _obedience(bench: Workbench, named: "Steered | None", which: str) -> dict[str, Any]:
    """Whether prompts that name a class are obeyed, `before` or `after` the method is attached."""
    if named is None or named.plan.prompts is None:
        return {}
    logits = read_judge(getattr(named, which), study_of(bench))
    return obedience(logits, named.plan.prompts, bench.named, bench.attribute)


def _read_after(before: Reading, steered: "Steered", study: Study, *, title: str) -> Reading:
    """What is read off the images with the mitigation; those that it left as they were are not read again."""
    # By their bytes, not by their targets: an edit need not change every image that has one.
    rows = (steered.after != steered.before).flatten(1).any(1).nonzero()[:, 0]
    if not len(rows):
        return before
    pieces = partial(float_pieces, steered.after[rows])
    return before.replaced(rows, read_images(pieces, steered.image_ids[rows], study, title=title))


def _oddness(bench: Workbench, steered: "Steered", before: Reading, study: Study) -> float | None:
    """Mean denoising error of edited images, × that of originals of their class; None where none has a class."""
    rows = (steered.targets >= 0).nonzero()[:, 0]
    if not len(rows):
        return None
    prompts, own = steered.plan.prompts, shown(before, study, study.attribute)
    texts = None if prompts is None else [prompts[row] for row in rows.tolist()]
    usual = denoising_errors(bench.model, steered.before, bench.site, prompts)
    errors = denoising_errors(bench.model, steered.after[rows], bench.site, texts)
    return float(oddness(errors, steered.targets[rows], usual, own).mean())


def study_of(bench: Workbench) -> Study:
    """What the configuration asks to be measured."""
    return Study(
        bench.attribute,
        bench.goals,
        tuple(bench.others()),
        bench.scoring_judge,
        bench.extractor,
        missing=bench.cfg.missing_faces,
        kid_subset=bench.cfg.metric.kid_subset,
        subject=bench.subject,
        recalls=plain(bench.cfg.judge.get("recalls") or {}),
    )


def read_reference(bench: Workbench) -> Reference:
    """Features of the reference images: of a folder they are kept for other runs, in memory they are read anew."""
    extractor = bench.extractor
    images = _reference_images(bench)
    if isinstance(images, ImageFolder):
        return collect_reference(images, extractor, store=bench.run.store)
    features = torch.cat([extractor(piece).cpu() for piece in float_pieces(images)])
    free(extractor)
    statistics = ReferenceStatistics.from_features(features, extractor=extractor.name, resize=extractor.resize)
    return Reference(features, statistics)


def _reference_images(bench: Workbench) -> ImageFolder | Tensor:
    def look() -> ImageFolder | Tensor:
        images: ImageFolder | Tensor = built(bench.cfg, "metric.reference")
        if isinstance(images, ImageFolder):
            bench.run.say(f"reference: {images.describe()}")
        return images

    # Once per run: a folder's hash takes every file of it.
    return bench.once("reference images", look)


def _reference_spec(bench: Workbench) -> Any:
    """What decides the reference: of a folder its images, else the settings that draw them."""
    described = plain(bench.cfg.metric.reference)
    if "folder" not in described:
        return described
    images = _reference_images(bench)
    return images.sha256 if isinstance(images, ImageFolder) else described
