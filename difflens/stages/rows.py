"""One row of `metrics.json`: everything that is measured on the images of one method."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from difflens.data.folder import Reference
from difflens.data.sampled import Shards
from difflens.judges.protocol import OTHER, faces_found, select_classes
from difflens.metrics.clip import ClipSimilarity, PromptSimilarity
from difflens.metrics.fairness import FairnessDiscrepancy, FairnessResult, count_others
from difflens.metrics.frechet import FrechetDistance, KernelDistance
from difflens.metrics.functional import (
    OfficialDiscrepancies,
    corrected_shares,
    discrepancy,
    official_discrepancies,
    paired_cosine,
    product_probabilities,
    share_measures,
    unrelated_cosine,
    wilson_interval,
)
from difflens.metrics.leakage import Leakage
from difflens.metrics.paired import Outcomes, fd_interval, mean_discrepancy
from difflens.stages.reading import CROSSED, Reading, Study
from difflens.vocabulary import EVERY_CLASS, NO_FACE, Attribute

if TYPE_CHECKING:
    from difflens.stages.generate import Steered

AT_ONCE = 4096
"""Images whose features are in float64 at once."""

DISCREPANCIES = ("fd", "fd_hard", "fd_chance", "fd_squared_unbiased")
"""What is kept of every result of FD, under the same names."""


def build_row(
    method: str,
    reading: Reading,
    study: Study,
    reference: Reference | None,
    *,
    original: Reading | None = None,
    edited: Tensor | None = None,
    prompts: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The row of one set of images.

    Args:
        method: what made them.
        reading: what was read off them.
        study: what is measured.
        reference: of FID and KID, None where these are not measured.
        original: the same ids without mitigation, if these are with one.
        edited: which images the mitigation acted on [N].
        prompts: the prompt of each image, if they have any.
    """
    nothing: dict[str, Any] = {"clip_i": None, "clip_i_paper": None, "clip_i_edited": None, "leakage": {}}
    return {
        "method": method,
        "n": len(reading.image_ids),
        "edited": 0 if edited is None else int(edited.sum()),
        **fairness(reading, study, study.goals.pooled(prompts)),
        **(prompted(reading, study, prompts) if prompts else {}),
        **(quality(reading, study, reference) if reference else {"fid": None, "kid": None, "kid_sd": None}),
        **(nothing if original is None else pairs(original, reading, study, edited)),
    }


def fairness(reading: Reading, study: Study, target: Tensor) -> dict[str, Any]:
    """FD of all images from the target [C], also of a product's parts; what is outside; FD over product classes."""
    single = _discrepancy(reading.logits(study.judge, study.attribute), study.attribute, target, missing=study.missing)
    return {
        "missing_faces": single.missing,
        "other": _outside(reading, study),
        **_summary(single, target),
        "fd_max": single.fd_maximum,
        "fd_corrected": _corrected(single, study, target),
        **_official(reading, study),
        **_parts(reading, study, target),
        **_intersectional(reading, study, target),
    }


def _corrected(found: FairnessResult, study: Study, target: Tensor) -> float | None:
    """Hard FD of the shares without the scoring judge's known errors, None where they are not known."""
    recalls = study.recalls.get(study.attribute.name)
    if recalls is None or set(recalls) != set(study.attribute.classes):
        return None
    # Of the most probable classes, as recalls are; soft shares have other errors.
    shares = torch.tensor([share.share for share in found.shares.values()], dtype=torch.float64)
    right = torch.tensor([recalls[name] for name in study.attribute.classes], dtype=torch.float64)
    return float(discrepancy(corrected_shares(shares, right), target))


def _intersectional(reading: Reading, study: Study, target: Tensor) -> dict[str, Any]:
    """FD over the product classes of `Study.crossed`, from `crossed_target`."""
    names = [attribute.name for attribute in study.crossed]
    if not names:
        return {"intersectional_fd": None, "intersectional_attributes": [], "intersectional": None}
    classes = [" × ".join(classes) for classes in product(*(attribute.classes for attribute in study.crossed))]
    metric = FairnessDiscrepancy(classes, crossed_target(study, target).flatten(), missing=study.missing)
    # Soft FD takes the judge's answers as independent given the image.
    answers = [reading.logits(study.judge, attribute).double().softmax(-1) for attribute in study.crossed]
    metric.update(product_probabilities(answers), probabilities=True)
    found = metric.compute()
    kept = {name: getattr(found, name) for name in DISCREPANCIES}
    summary = {"n": found.n, "missing_faces": found.missing, **kept, "fd_max": found.fd_maximum}
    return {"intersectional_fd": found.fd_hard, "intersectional_attributes": names, "intersectional": summary}


def crossed_target(study: Study, target: Tensor) -> Tensor:
    """The target [C_1, …, C_k] of the product classes: the studied attribute's own [C], times equal shares of all others."""
    components = study.attribute.components
    joint = target.double().view([len(part.classes) for part in components])
    # From the last axis on, so that one that is summed out moves none still to come.
    for axis, part in reversed([*enumerate(components)]):
        named = [index for index, name in enumerate(part.classes) if name != OTHER]
        crossed = part.name in CROSSED
        joint = joint.index_select(axis, torch.tensor(named)) if crossed else joint.sum(axis)
    # What was asked for the class of all the rest falls to the others in proportion.
    joint = joint / joint.sum()
    # Those under study come first in `crossed`: the rest are the axes that the joint lacks.
    for attribute in study.crossed[joint.ndim :]:
        size = len(attribute.classes)
        joint = joint.unsqueeze(-1).expand(*joint.shape, size) / size
    return joint


def _parts(reading: Reading, study: Study, target: Tensor) -> dict[str, Any]:
    """The discrepancy of each part of a product, from what the product's target asks of it."""
    joint = target.view([len(part.classes) for part in study.attribute.components])
    found: dict[str, Any] = {}
    for axis, part in enumerate(study.attribute.parts):
        share = joint.movedim(axis, 0).flatten(1).sum(1)
        single = _discrepancy(reading.logits(study.judge, part), part, share, missing=study.missing)
        found[part.name] = _summary(single, share)
    return {"parts": found} if found else {}


def prompted(reading: Reading, study: Study, prompts: Sequence[str]) -> dict[str, Any]:
    """The discrepancy under every prompt, their means (METHOD section 7: not the pooled one), obedience, and CLIP-T."""
    names, which = _numbered(prompts)
    logits = reading.logits(study.judge, study.attribute)
    obeyed = _obeyed(reading, study, names, which)
    by_prompt: dict[str, dict[str, Any]] = {}
    # Under each prompt by itself: pooled, biases in opposite directions would cancel.
    for number, prompt in enumerate(names):
        rows, target = which == number, study.goals.of(prompt)
        found = _discrepancy(logits[rows], study.attribute, target, missing=study.missing)
        goal = dict(zip(study.attribute.classes, target.tolist(), strict=True))
        counted = {"n": found.n, "missing_faces": found.missing}
        numbers = {**_summary(found, target), "fd_corrected": _corrected(found, study, target)}
        by_prompt[prompt] = {**counted, "target": goal, **numbers, **_official(reading, study, rows)}
        if obeyed is not None:
            by_prompt[prompt]["obeyed"] = float(obeyed[rows].nanmean())
    similarity = PromptSimilarity()
    # Every prompt is encoded once, not once per image.
    similarity.update(reading.embeddings, study.extractor.embed_texts(names)[which])  # type: ignore[attr-defined]
    clip = similarity.compute()
    measured = [key for key in ("fd", "fd_hard", "fd_official") if key in next(iter(by_prompt.values()))]
    means = {f"{key}_prompt_mean": fmean(row[key] for row in by_prompt.values()) for key in measured}
    share = None if obeyed is None else float(obeyed.nanmean())
    return {**means, "prompts": by_prompt, "obeyed": share, "clip_t": clip.cosine, "clip_t_paper": clip.paper}


def _numbered(prompts: Sequence[str]) -> tuple[list[str], Tensor]:
    """Each prompt once, and the number there of every image's own [N]."""
    order = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    return list(order), torch.tensor([order[prompt] for prompt in prompts])


def _obeyed(reading: Reading, study: Study, prompts: Sequence[str], which: Tensor) -> Tensor | None:
    """Whether each image shows what its prompt, `prompts[which]`, names [N]: 1, 0, or NaN without a face; None if unmeasured.

    Raises:
        ValueError: a prompt names no class of the subject, or several.
    """
    if study.subject is None:
        return None
    named = []
    for prompt in prompts:
        # Whole words: `female` contains `male`.
        found = [name for name in study.subject.classes if re.search(rf"\b{re.escape(name)}\b", prompt)]
        if len(found) != 1:
            raise ValueError(f"prompt.subject: {prompt!r} names {found or 'none'} of {list(study.subject.classes)}.")
        named.append(study.subject.index(found[0]))
    logits = reading.logits(study.judge, study.subject)
    # An image without a face neither obeys nor disobeys.
    hit = (logits.argmax(-1) == torch.tensor(named)[which]).double()
    return hit.masked_fill(~faces_found(logits), torch.nan)


def quality(reading: Reading, study: Study, reference: Reference) -> dict[str, Any]:
    """FID and KID."""
    frechet = FrechetDistance(study.extractor.dim, reference.statistics)
    # Covariances need float64; all features at once in it would double what they take.
    for features in reading.features.split(AT_ONCE):
        frechet.update(features)
    kernel = KernelDistance(reference.features, reading.image_ids, subset_size=study.kid_subset)
    kernel.update(reading.features, reading.image_ids)
    fid, kid = frechet.compute().distance, kernel.compute()
    return {"fid": fid, "kid": kid.distance, "kid_sd": kid.subset_sd}


def smaller_subsets(study: Study, reference: Reference | None, n: int) -> dict[str, str]:
    """What to say of KID's random subsets where there are too few images for the size that was asked for."""
    if reference is None or study.kid_subset <= (size := min(n, len(reference.features))):
        return {}
    return {"kid_subset": f"{size} images, of which there are no {study.kid_subset}"}


def pairs(before: Reading, after: Reading, study: Study, edited: Tensor | None) -> dict[str, Any]:
    """CLIP-I and leakage of images against those of the same ids without mitigation; `edited` is None where nobody knows."""
    ids = after.image_ids
    similarity = ClipSimilarity(before.embeddings, before.image_ids)
    similarity.update(after.embeddings, ids)
    clip = similarity.compute()
    own = None
    if edited is not None and bool(edited.any()):
        # Untouched images have a cosine of 1, which would hide what the edit costs (METHOD section 7).
        own = float(paired_cosine(before.embeddings, after.embeddings)[edited].mean())
    return {
        "clip_i": clip.cosine,
        "clip_i_paper": clip.paper,
        "clip_i_edited": own,
        "clip_i_floor": float(unrelated_cosine(before.embeddings)),
        **_leakage(before, after, study, edited),
    }


def outcomes_of(before: Reading, after: Reading, study: Study, steered: "Steered") -> Outcomes:
    """What was done to each image, as the scoring judge reads it."""
    flipped = {other.name: shown(before, study, other) != shown(after, study, other) for other in study.others}
    cosines = paired_cosine(before.embeddings, after.embeddings)
    return Outcomes(after.image_ids, steered.targets, shown(after, study, study.attribute), flipped, cosines)


def shown(reading: Reading, study: Study, attribute: Attribute) -> Tensor:
    """The class [N] that the scoring judge sees in each image, `NO_FACE` where it sees none."""
    logits = reading.logits(study.judge, attribute)
    return torch.where(faces_found(logits), logits.argmax(-1), NO_FACE)


def of_moved(before: Reading, found: Outcomes, study: Study) -> dict[str, Any]:
    """What was done to the images whose class had to change: how many, and what is told of all pushed ones elsewhere.

    Many a pushed image shows its class already (of two even classes half of them), and an edit that leaves it as it is
    reaches and keeps all: in the mean over all pushed images they hide what a change costs.
    """
    moved = (found.target >= 0) & (shown(before, study, study.attribute) != found.target)
    return {
        "moved": int(moved.sum()),
        "reached_moved": _share(found.reached[moved]),
        "nothing_else_moved": _share(found.nothing_else[moved]) if found.flipped else None,
        "clip_i_moved": float(found.clip_i[moved].double().mean()) if bool(moved.any()) else None,
    }


def promised(before: Reading, study: Study, steered: "Steered", prompts: Sequence[str] | None) -> dict[str, Any]:
    """`fd_perfect`: hard FD if every pushed image arrived, as the assignment alone decides; None for no single class.

    Of prompts `fd_perfect_prompt_mean`, the mean of each one's own.
    """
    key = "fd_perfect_prompt_mean" if prompts else "fd_perfect"
    if bool((steered.targets == EVERY_CLASS).any()):
        return {key: None}
    # Under a quota even a perfect method need not meet the target: this is what it would get (METHOD section 7).
    arrived = torch.where(steered.targets >= 0, steered.targets, shown(before, study, study.attribute))
    return {key: mean_discrepancy(arrived, *targets_of(study, prompts))}


def targets_of(study: Study, prompts: Sequence[str] | None) -> tuple[Tensor, Tensor | None]:
    """The target [C] and None; with prompts every prompt's own [P, C], and which prompt each image is of [N]."""
    if prompts is None:
        return study.goals.shared, None
    names, which = _numbered(prompts)
    return torch.stack([study.goals.of(prompt) for prompt in names]), which


def with_intervals(found: Outcomes, study: Study, prompts: Sequence[str] | None, *, group: int) -> dict[str, Any]:
    """What is counted image by image: the interval of hard FD, and the edited images in which nothing else changed."""
    edited = found.edited
    # With no other attribute measured, nothing can be said of them: None instead of a perfect 1.
    kept = found.nothing_else[edited] if found.flipped else edited[:0]
    flips = torch.stack([*found.flipped.values()]).double().sum(0)[edited] if found.flipped else edited[:0]
    return {
        **fd_ends(found.shown, study, prompts, group=group),
        **_with_ends("nothing_else", kept, group=group),
        "flips": float(flips.mean()) if len(flips) else None,
    }


def fd_ends(classes: Tensor, study: Study, prompts: Sequence[str] | None, *, group: int) -> dict[str, float | None]:
    """The ends of hard FD's interval, from the class of each image [N]."""
    target, prompt = targets_of(study, prompts)
    low, high = fd_interval(classes, target, prompt=prompt, group=group)
    # Under the name of what it is the interval of: with prompts the mean of each one's FD, not that of all together.
    ends = "_prompt_mean" if prompts else ""
    return {f"fd_low{ends}": low, f"fd_high{ends}": high}


def _with_ends(name: str, hits: Tensor, *, group: int) -> dict[str, float | None]:
    """A share and the ends of its 95 % interval (Wilson's), where images in groups of `group` count as one case each."""
    share = _share(hits)
    if share is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    cases = -(-len(hits) // group)
    low, high = (float(end) for end in wilson_interval(torch.tensor([share * cases], dtype=torch.float64), cases))
    return {name: share, f"{name}_low": low, f"{name}_high": high}


def agreement(reading: Reading, study: Study, steered: "Steered") -> dict[str, Any]:
    """The share of the unedited images in which both judges see the same class, of all and by prompt.

    Where the judges differ on images that no edit touches, no strength brings the measured shares to the target.
    `judges_agree` is None where no image has a face for both; `judges_agree_by_prompt` is there if there are prompts.
    """
    logits = reading.logits(study.judge, study.attribute)
    known = faces_found(logits) & (steered.labels != NO_FACE)
    same = logits.argmax(-1) == steered.labels
    found: dict[str, Any] = {"judges_agree": _share(same[known])}
    if steered.plan.prompts:
        names, which = _numbered(steered.plan.prompts)
        found["judges_agree_by_prompt"] = {name: _share(same[known & (which == i)]) for i, name in enumerate(names)}
    return found


NOWHERE: dict[str, float | None] = {
    **dict.fromkeys(("reached", "reached_low", "reached_high", "reached_unedited")),
    **dict.fromkeys(("moved", "reached_moved", "nothing_else_moved", "clip_i_moved")),
}
"""What is said of arrival where no image has a class of its own."""


def arrival(
    before: Reading, after: Reading, study: Study, steered: "Steered", *, group: int
) -> dict[str, float | None]:
    """`reached`, the share of the images pushed towards a class that show it to the scoring judge, with its interval.

    `reached_unedited` is the share of the same images that show it without the edit; all are None if none was pushed.
    """
    # EVERY_CLASS is negative: such images are pushed towards no single class.
    pushed = steered.targets >= 0
    # An image that shows no face shows no class either: left out, an edit that destroys faces would count for more.
    first, second = ((shown(of, study, study.attribute) == steered.targets)[pushed] for of in (before, after))
    return _with_ends("reached", second, group=group) | {"reached_unedited": _share(first)}


def obedience(
    logits: Tensor, prompts: Sequence[str], named: Mapping[str, int], attribute: Attribute
) -> dict[str, float | dict[str, Any] | None]:
    """How often images show the class that their prompt names: of all, and by prompt.

    Args:
        logits: the scoring judge's [N, C].
        prompts: of each image.
        named: prompt → the class of `attribute` it names.
        attribute: whose classes these are.

    Returns:
        `named_obeyed`, None where no image has a face, and `named`: prompt → class, images with a face and share.
    """
    known, (names, which) = faces_found(logits), _numbered(prompts)
    obeyed = logits.argmax(-1) == torch.tensor([named[prompt] for prompt in prompts])
    by_prompt = {}
    for number, prompt in enumerate(names):
        seen = known & (which == number)
        name = attribute.classes[named[prompt]]
        by_prompt[prompt] = {"class": name, "n": int(seen.sum()), "obeyed": _share(obeyed[seen])}
    return {"named_obeyed": _share(obeyed[known]), "named": by_prompt}


def cost(steered: "Steered") -> dict[str, float | None]:
    """`compute`: floating-point operations of a changed image over those of an unedited one, None where none was changed."""
    plain, edited = (Shards(artifact.folder).flops for artifact in steered.artifacts)
    return {"compute": edited / plain if plain and edited else None}


def _share(hits: Tensor) -> float | None:
    return float(hits.double().mean()) if len(hits) else None


def _leakage(before: Reading, after: Reading, study: Study, edited: Tensor | None) -> dict[str, Any]:
    if not study.others:
        return {"leakage": {}}
    first, second = ({a.name: r.logits(study.judge, a) for a in study.studied} for r in (before, after))
    classes = {a.name: a.classes for a in study.studied}
    leakage = Leakage(study.attribute.name, first, before.image_ids, classes=classes, missing=study.missing)
    # Of a folder nobody knows which images were edited: the rate over edited ones is NaN then, and null in the row.
    nothing = torch.zeros(len(after.image_ids), dtype=torch.bool)
    leakage.update(second, after.image_ids, edited=nothing if edited is None else edited)
    leaked = leakage.compute()
    return {
        "leakage": {name: _finite(entry._asdict()) for name, entry in leaked.attributes.items()},
        **_finite({"editing_precision": leaked.editing_precision}),
        "pairs_without_face": leaked.missing,
    }


def _discrepancy(logits: Tensor, attribute: Attribute, target: Tensor, *, missing: str) -> FairnessResult:
    metric = FairnessDiscrepancy(attribute.classes, target, missing=missing)
    metric.update(logits)
    return metric.compute()


def _summary(found: FairnessResult, target: Tensor) -> dict[str, Any]:
    return {
        **{name: getattr(found, name) for name in DISCREPANCIES},
        "shares": {name: share._asdict() for name, share in found.shares.items()},
        **share_measures(torch.tensor([share.share for share in found.shares.values()]), target),
    }


def _official(reading: Reading, study: Study, rows: Tensor | slice = slice(None)) -> dict[str, float]:
    """The released code's discrepancy of some images, where the judge follows its protocol."""
    if reading.outputs is None or study.attribute.name not in OfficialDiscrepancies._fields:
        return {}
    outputs = reading.outputs[rows]
    seen = official_discrepancies(outputs[faces_found(outputs)])
    return {"fd_official": seen._asdict()[study.attribute.name]}


def _outside(reading: Reading, study: Study) -> dict[str, Any]:
    """Of each part of the attribute for which the judge knows more classes, the images outside of those studied."""
    counted = {}
    for part in study.attribute.components:
        others = count_others(reading.answers[part.name], select_classes(study.judge, part))
        if len(study.judge.classes[part.name]) > len(part.classes):
            counted[part.name] = {**others._asdict(), "share": others.images / others.n}
    return counted


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    # JSON knows neither NaN nor infinity, which the editing precision is where only the target moved.
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
