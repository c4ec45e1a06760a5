"""The methods of a sweep against one of them, image by image: differences, intervals and adjusted p-values."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from difflens.metrics.paired import Comparison, Outcomes, compare_fd, compare_hits, compare_means, holm
from difflens.report.measures import METHOD_NAMES, NONE
from difflens.report.sweep import Job, doubts_sentence
from difflens.report.tables import Grid

REFERENCE = "difflens"
"""The method that all others are compared with, where the sweep has it."""

COMPARED = ("FD, hard", "class reached, %", "nothing else changed, %", "CLIP-I, edited")


class Pair(NamedTuple):
    """One method less the reference under one setting, in the order of `COMPARED`."""

    setting: tuple[str, ...]
    method: str
    differences: tuple[Comparison, ...]


def paired(jobs: Sequence[Job]) -> Grid | None:
    """A row per method and setting against `REFERENCE` on the same images; None where no two methods can be compared.

    p-values are of McNemar's exact test (reached, nothing else changed) and of the bootstrap (CLIP-I), or of a randomisation
    test of groups where a method couples images, adjusted by Holm within each setting; FD has an interval alone.
    """
    pairs = [*_pairs(jobs)]
    if not pairs:
        return None
    # All tests of a setting together, such as an attribute's: among many some would come out by chance (Holm 1979). The
    # answer about one attribute must not hang on which others were studied in the same sweep.
    adjusted: dict[tuple[int, int], float] = {}
    for setting in dict.fromkeys(pair.setting for pair in pairs):
        own = [(i, pair) for i, pair in enumerate(pairs) if pair.setting == setting]
        tested = {(i, j): each.p for i, pair in own for j, each in enumerate(pair.differences) if each.p is not None}
        adjusted |= dict(zip(tested, holm([*tested.values()]), strict=True))
    rows = [
        [
            *pair.setting,
            METHOD_NAMES.get(pair.method, pair.method),
            *(
                _shown(each, adjusted.get((i, j)), scale=100 if "%" in name else 1)
                for j, (name, each) in enumerate(zip(COMPARED, pair.differences, strict=True))
            ),
        ]
        for i, pair in enumerate(pairs)
    ]
    caption = (
        f"Each method less {METHOD_NAMES.get(REFERENCE, REFERENCE)} on the same images [95 % interval]; p is "
        f"adjusted over all methods (Holm).{doubts_sentence(jobs)}"
    )
    return Grid([*_factors(jobs), "method", *COMPARED], rows, numbers=len(COMPARED), caption=caption)


def _factors(jobs: Sequence[Job]) -> list[str]:
    """The keys but for the method whose values differ between jobs; seeds among them, since only equal images are pairs."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides if key != "mitigation")
    return [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]


def _pairs(jobs: Sequence[Job]) -> list[Pair]:
    # Jobs that differ in nothing but the method are one setting.
    factors = _factors(jobs)
    found: dict[tuple[str, ...], dict[str, Job]] = {}
    for job in jobs:
        if job.metrics and (job.folder / "outcomes.safetensors").is_file():
            setting = tuple(job.overrides.get(key, "") for key in factors)
            method = str(job.metrics["rows"][-1]["method"])
            found.setdefault(setting, {})[method] = job
    pairs = []
    for setting, by_method in found.items():
        if REFERENCE not in by_method:
            continue
        reference = _outcomes(by_method[REFERENCE])
        for method, job in by_method.items():
            # Other ids are other noise, and no pairs.
            if method != REFERENCE and torch.equal(_outcomes(job).image_ids, reference.image_ids):
                pairs.append(Pair(setting, method, _differences(_outcomes(job), reference, job.metrics)))
    return pairs


def _outcomes(job: Job) -> Outcomes:
    return Outcomes.of(load_file(job.folder / "outcomes.safetensors"))


def _differences(one: Outcomes, other: Outcomes, metrics: Mapping[str, Any]) -> tuple[Comparison, ...]:
    target, prompt = _targets(metrics, len(one.shown))
    group = int((metrics.get("protocol") or {}).get("images_coupled") or 1)
    # Images that both were to change: a method that leaves one alone would win by doing nothing.
    both = one.edited & other.edited
    nothing = Comparison(float("nan"), float("nan"), float("nan"))
    if not bool(both.any()):
        return compare_fd(one, other, target, prompt=prompt, group=group), nothing, nothing, nothing
    # A method that aims at shares gives no image a class to reach.
    own = (metrics.get("protocol") or {}).get("class_of_its_own", True)
    return (
        compare_fd(one, other, target, prompt=prompt, group=group),
        compare_hits(one.reached[both], other.reached[both], group=group) if own else nothing,
        compare_hits(one.nothing_else[both], other.nothing_else[both], group=group),
        compare_means(one.clip_i[both], other.clip_i[both], group=group),
    )


def _targets(metrics: Mapping[str, Any], images: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The target [C] and None; with prompts every prompt's own [P, C] and which prompt each image is of."""
    prompts = metrics["rows"][-1].get("prompts") or {}
    # Images come prompt by prompt, in the order of the table.
    counts = torch.tensor([row["n"] + row["missing_faces"] for row in prompts.values()], dtype=torch.int64)
    wanted = [row["target"] for row in prompts.values()] or [metrics["target"]]
    target = torch.tensor([[each[name] for name in metrics["classes"]] for each in wanted], dtype=torch.float64)
    if int(counts.sum()) != images:
        return target.mean(0), None
    return target, torch.arange(len(counts)).repeat_interleave(counts)


def _shown(found: Comparison, p: float | None, *, scale: float) -> str:
    if math.isnan(found.difference):
        return NONE
    digits = 1 if scale == 100 else 3
    low, high = (f"{scale * end:+.{digits}f}" for end in (found.low, found.high))
    # A method that couples all of the images has made one draw, and nobody knows how another would come out.
    interval = f"[{low}, {high}]" if math.isfinite(found.low) else NONE
    text = f"{scale * found.difference:+.{digits}f} {interval}"
    return text if p is None else f"{text}, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
