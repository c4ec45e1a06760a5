"""At which block and step a class can be read, and where a push towards it changes little else."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difflens.attribution.decodability import FOLDS, mean_recall, out_of_fold
from difflens.data.sampled import as_bytes
from difflens.methods.assignment import assign_exact
from difflens.methods.base import Window
from difflens.methods.h_direction import DirectionEdit, directions_of
from difflens.metrics.functional import paired_cosine
from difflens.metrics.paired import bootstrap, resamples
from difflens.models.hooks import readable_modules
from difflens.stages.oddness import denoising_errors, oddness
from difflens.stages.plans import spread_plan
from difflens.store.errors import UserError
from difflens.store.progress import Progressing
from difflens.study.values import plain
from difflens.study.workbench import Workbench
from difflens.vocabulary import GenerationPlan, Site

ENOUGH = 0.95
"""A push that brings so many images to their class is not made stronger."""

STRENGTHS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
"""How many times the mean difference between the classes is added, until that is enough: each place at its least push."""

REAL = 5.0
"""A push after which images are odder than this (see `stages.oddness`) is put behind all others that reach their class.

On drawn faces the untouched model is 2 to 4 times as far off on images pushed at the bottleneck or in the first upward
block, which look right, and 16 to 22 times on images pushed nearer to the output, which do not (experiments/README.md).
"""


@dataclass(frozen=True)
class Trial:
    """What a push at one place and time did to images that nothing else has seen.

    Attributes:
        site: the block.
        start: share of the steps before which nothing is edited.
        stop: share of the steps from which on nothing is edited.
        strength: the first of `STRENGTHS` that was enough, or the last.
        reached: share of the images that show their class.
        nothing_else: share in which the labelling judge sees no other attribute changed.
        clip_i: mean cosine with the unedited image.
        clip_low: the lower end of its 95 % interval.
        clip_high: the upper end.
        oddness: of the same push where all places may change (see `stages.oddness`).
    """

    site: str
    start: float
    stop: float
    strength: float
    reached: float
    nothing_else: float
    clip_i: float
    clip_low: float
    clip_high: float
    oddness: float


def localisation(
    bench: Workbench, *, site: Site | None = None, window: tuple[float, float] | None = None
) -> dict[str, Any]:
    """Recall of a linear probe at every block and step, and the trials of pushes at the most telling ones, best first.

    Found once for a model, an attribute and a judge, and kept; `artifact` names what was kept.

    Args:
        bench: the study.
        site: where pushes are tried; None for the most telling blocks.
        window: when they are tried; None for `localise.windows`.
    """
    settings = plain(bench.cfg.localise) | ({} if window is None else {"windows": [list(window)]})
    spec = {
        "model": bench.model.spec(),
        **bench.attribute_spec(bench.attribute),
        "clip": bench.extractor.fingerprint,  # type: ignore[attr-defined]
        "prompts": [] if bench.prompts is None else list(bench.prompts.studied),
        "others": [other.name for other in bench.others()],
        "settings": settings,
        "update": bench.method.update,
        "focus": getattr(bench.method, "focus", 0.0),
        "release": getattr(bench.method, "release", 1.0),
        "seed": bench.cfg.seed,
        "site": None if site is None else asdict(site),
    }

    def make(folder: Path) -> None:
        (folder / "localisation.json").write_text(json.dumps(_localise(bench, settings, site)))

    with bench.run.stage("localise"):
        artifact = bench.run.artifact("localisation", spec, make)
    return {**json.loads((artifact.folder / "localisation.json").read_text()), "artifact": str(artifact)}


def _localise(bench: Workbench, settings: Mapping[str, Any], site: Site | None) -> dict[str, Any]:
    sites = [Site(name, branch=bench.model.default_branch) for name in readable_modules(bench.model.unet)]
    plan = spread_plan(bench, settings["images"], base_seed=settings["base_seed"])
    recall, labels = decodability(bench, plan, sites, pool=settings["pool"])
    # The most telling over all steps: what is read at the last ones alone comes too late to be changed.
    order = recall.mean(1).argsort(descending=True).tolist()
    chosen = [sites[i] for i in order[: settings["sites"]]] if site is None else [site]
    directions = class_differences(bench, plan, chosen, labels)
    trials = tried(bench, settings, directions)
    return {
        "model": bench.model.name,
        "attribute": bench.attribute.name,
        "classes": list(bench.attribute.classes),
        "images": settings["images"],
        "sites": [site.module for site in sites],
        "recall": recall.tolist(),
        "trials": [asdict(trial) for trial in trials],
    }


def decodability(bench: Workbench, plan: GenerationPlan, sites: Sequence[Site], *, pool: int) -> tuple[Tensor, Tensor]:
    """Mean recall of a linear probe at every site and step [sites, steps] (float64), and the images' classes [N].

    One pass of sampling reads all sites: means over `pool` × `pool` parts of each map are kept, and no map.

    Raises:
        UserError: too few images show a class.
    """
    now: dict[Site, list[Tensor]] = {site: [] for site in sites}
    kept: dict[Site, list[Tensor]] = {site: [] for site in sites}

    def take(site: Site, h: Tensor) -> None:
        now[site].append(torch.nn.functional.adaptive_avg_pool2d(h.float(), pool).flatten(1).half().cpu())

    made = []
    with Progressing("every block", len(plan.image_ids)) as display:
        readers = {site: (lambda _, h, site=site: take(site, h)) for site in sites}
        for batch in bench.model.sample(plan, readers=readers):
            made.append(as_bytes(batch.images))
            for site in sites:
                kept[site].append(torch.stack(now[site], 1))
                now[site].clear()
            display.advance(len(batch.image_ids))
    labels, classes = bench.labels(torch.cat(made))[0], len(bench.attribute.classes)
    seen = labels >= 0
    counts = torch.bincount(labels[seen], minlength=classes).tolist()
    if min(counts) < FOLDS:
        shown = ", ".join(f"{name} {count}" for name, count in zip(bench.attribute.classes, counts, strict=True))
        raise UserError(f"a probe needs {FOLDS} images of each class at least, got {shown}; raise localise.images.")
    recall = torch.zeros(len(sites), bench.model.steps, dtype=torch.float64)
    with Progressing("probes", recall.numel()) as display:
        for row, site in enumerate(sites):
            features = torch.cat(kept[site])[seen].float()
            for step in range(bench.model.steps):
                read = out_of_fold(features[:, step], labels[seen], classes)
                recall[row, step] = mean_recall(read, labels[seen], classes)
            display.advance(bench.model.steps)
    return recall, labels


def class_differences(
    bench: Workbench, plan: GenerationPlan, sites: Sequence[Site], labels: Tensor
) -> dict[Site, Tensor]:
    """The mean difference of whole maps between each class and the others [classes, steps, D, H, W], by site.

    A second pass of the same images adds the maps up by class, so that none is kept.
    """
    classes, steps = len(bench.attribute.classes), bench.model.steps
    sums: dict[Site, Tensor] = {}
    rows = torch.zeros(0, dtype=torch.int64)

    def add(site: Site, step: int, h: Tensor) -> None:
        if site not in sums:
            sums[site] = torch.zeros(classes, steps, *h.shape[1:], dtype=torch.float64)
        known = rows >= 0
        member = torch.nn.functional.one_hot(rows[known], classes).double()
        sums[site][:, step] += torch.einsum("nc,ndhw->cdhw", member, h.cpu()[known].double())

    readers = {site: (lambda step, h, site=site: add(site, step, h)) for site in sites}
    size = bench.model.micro_batch
    with Progressing("differences", len(labels)) as display:
        for start in range(0, len(labels), size):
            rows = labels[start : start + size]
            for batch in bench.model.sample(plan.part(start, start + size), readers=readers):
                display.advance(len(batch.image_ids))
    counts = torch.bincount(labels[labels >= 0], minlength=classes)
    return {
        site: torch.stack([directions_of(each, counts) for each in total.unbind(1)], 1) for site, total in sums.items()
    }


def tried(bench: Workbench, settings: Mapping[str, Any], directions: Mapping[Site, Tensor]) -> list[Trial]:
    """Pushes at each site over all steps, then at the best two in each window; best first (see `ordered`)."""
    trying = _Trying(bench, spread_plan(bench, settings["tried"], base_seed=settings["base_seed"] + 1))
    first, *later = (tuple(window) for window in settings["windows"])
    with Progressing("pushes", len(directions) + 2 * len(later)) as display:
        found = []
        for site, own in directions.items():
            found.append(trying(site, own, first))
            display.advance(1)
        by_name = {site.module: site for site in directions}
        for trial in ordered(found)[:2]:
            site = by_name[trial.site]
            for window in later:
                found.append(trying(site, directions[site], window))
                display.advance(1)
    return ordered(found)


def ordered(trials: Iterable[Trial]) -> list[Trial]:
    """Those first that bring enough images to their class, of these the real ones, and of these the most similar ones."""

    def key(trial: Trial) -> tuple[bool, bool, float]:
        arrives = trial.reached >= ENOUGH
        return not arrives, trial.oddness > REAL, -trial.clip_i if arrives else -trial.reached

    return sorted(trials, key=key)


class _Trying:
    """Pushes the same images, a class for each by quota, and compares them with the unedited ones."""

    def __init__(self, bench: Workbench, plan: GenerationPlan) -> None:
        self.bench, self.plan = bench, plan
        self.before = self._made(plan)
        self.shown, self.embedded = bench.answers(self.before), bench.embedded(self.before)
        self.usual = self._errors(self.before)
        classes = len(bench.attribute.classes)
        even = torch.full((classes,), 1 / classes, dtype=torch.float64)
        self.targets = assign_exact(even, len(plan.image_ids), seed=bench.cfg.seed)
        self.plan = plan.towards(self.targets)

    def __call__(self, site: Site, directions: Tensor, window: tuple[float, float]) -> Trial:
        bench, attribute = self.bench, self.bench.attribute
        edit = DirectionEdit(attribute, directions, site=site, update=bench.method.update, window=Window(*window))
        # What an edit may change beside the attribute depends on the places that it leaves alone.
        edit.focus, edit.release = getattr(bench.method, "focus", 0.0), getattr(bench.method, "release", 1.0)
        for strength in STRENGTHS:
            pushed = edit.with_strength(torch.full((len(attribute.classes),), strength))
            after = self._made(self.plan, pushed)
            answers = bench.answers(after)
            hit = bench.classified(answers, attribute)[0] == self.targets
            if hit.double().mean() >= ENOUGH:
                break
        changed = torch.zeros(len(hit), dtype=torch.bool)
        for other in bench.others():
            changed |= bench.classified(answers, other)[0] != bench.classified(self.shown, other)[0]
        cosine = paired_cosine(self.embedded, bench.embedded(after)).double()
        mean = float(cosine.mean())
        low, high = bootstrap(cosine[resamples(len(cosine))].mean(1), mean)
        reached, alone = float(hit.double().mean()), float((~changed).double().mean())
        if pushed.focus:
            # At the border of the places that are left alone any edit is ragged, and odd for that reason.
            pushed.focus = 0.0
            after = self._made(self.plan, pushed)
        own = bench.classified(self.shown, attribute)[0]
        odd = float(oddness(self._errors(after), self.targets, self.usual, own).mean())
        return Trial(site.module, *window, strength, reached, alone, mean, low, high, odd)

    def _errors(self, images: Tensor) -> Tensor:
        return denoising_errors(self.bench.model, images, self.bench.site, self.plan.prompts)

    def _made(self, plan: GenerationPlan, edit: DirectionEdit | None = None) -> Tensor:
        return torch.cat([as_bytes(batch.images) for batch in self.bench.model.sample(plan, method=edit)])
