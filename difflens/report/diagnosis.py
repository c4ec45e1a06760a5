"""The signs of a study that failed, told with what was measured: features, attribution, intervention."""

from typing import NamedTuple

from difflens.report.measures import fairness, known, number, percent
from difflens.report.run_folder import Json, RunFolder, baseline, mitigated

LARGEST_FVU = 0.5
"""An autoencoder that leaves more of the variance unexplained describes less of the site than it misses."""
MOST_DEAD = 0.5
"""Share of latents that never fire above which the dictionary is at most half as wide as it says."""
MOST_ACTIVE = 0.25
"""Share of latents active per token above which nobody would call a code sparse."""
LEAST_KEPT = 0.5
"""Share of the way from unrelated images (0) to the same image (1) below which another picture was drawn, by CLIP-I."""
TWO_SIDED = 1.96
LEVEL = 0.05


class Sign(NamedTuple):
    """One way to fail: whether this run shows it (None: not measured), the numbers that say so, and what to change."""

    key: str
    title: str
    found: bool | None
    evidence: str
    advice: str = ""


def diagnose(run: RunFolder) -> list[Sign]:
    """What the run's own files say of each way to fail that its method can have; empty for a run without results."""
    row, signs = mitigated(run.metrics), []
    if run.report.get("sae"):
        signs += [features(run.report), attribution(run.report)]
    return [*signs, intervention(run.metrics, row, run.report.get("dose") or {})] if row else signs


def features(report: Json) -> Sign:
    """Are the features sparse, and does one of them tell the attribute, and more than it tells anything else?"""
    sae, told = report["sae"], report.get("separation")
    fvu, dead, l0, width = (sae.get(key) for key in ("fvu", "dead_share", "l0", "width"))
    evidence = [
        f"The autoencoder leaves {percent(fvu)} of the variance unexplained, {percent(dead)} of its latents never fire, "
        f"and {number(l0, 1)} of {width} are active per token."
    ]
    faults = [
        (known(fvu) and fvu > LARGEST_FVU, "raise sae.training.tokens, sae.k or sae.expansion"),
        (known(dead) and dead > MOST_DEAD, "lower sae.expansion or raise sae.training.aux_coefficient"),
        (known(l0) and known(width) and l0 > MOST_ACTIVE * width, "lower sae.k (raw neurons are never sparse)"),
    ]
    if told is None:
        evidence.append("How well single latents tell the attribute was not measured; `difflens task=report` does.")
    else:
        ends = f"± {number(TWO_SIDED * told['error'], 2)}"
        evidence.append(
            f"Latent {told['latent']} tells {told['name']} best, with AUC {number(told['auc'], 3)} on images it was not "
            f"chosen on (0.5 {ends} tells nothing)"
            + (f"; {told['other']} with {number(told['other_auc'], 3)}." if told["other"] else ".")
        )
        nothing = told["auc"] <= 0.5 + TWO_SIDED * told["error"]
        faults.append((nothing, "choose another site: `difflens task=localise` shows where the attribute can be read"))
        mixed = told["other"] is not None and told["other_auc"] > told["auc"]
        faults.append((mixed and not nothing, "raise sae.expansion, or attribution.specificity"))
    advice = [words for holds, words in faults if holds]
    measured = True if advice else False if told else None
    return Sign("features", "Features are not sparse or do not separate", measured, " ".join(evidence), _then(advice))


def attribution(report: Json) -> Sign:
    """Does silencing the located latents take the class away, more than silencing others that fire as much?"""
    title, found = "Located features do not cause the attribute", report.get("silencing") or {}
    if "p" not in found:
        why = str(found.get("unmeasured", "")).rstrip(".;")
        evidence = f"Not measured{why and f' ({why})'}; `difflens task=ablation` does."
        return Sign("attribution", title, None, evidence)
    low, high = (number(100 * found[end], 1) for end in ("low", "high"))
    accuracy = [value for value in (report.get("probe") or {}).get("accuracy_per_step") or [] if known(value)]
    evidence = (
        f"With its located latents silenced {percent(found['top'])} of {found['images']} images keep their class, with "
        f"others that fire as much {percent(found['random'])}: {number(100 * found['difference'], 1)} points more "
        f"({low} to {high}, p = {found['p']:.2g})."
    )
    if accuracy:
        chance = percent(report["probe"].get("chance"), 0)
        evidence += f" The probe they were located by reads {percent(max(accuracy))} at best ({chance} by chance)."
    failed = found["p"] >= LEVEL or found["difference"] <= 0
    advice = [
        "look at the probe first: near chance, its labels or the site are wrong (judge.labels, data.site.module)",
        "then raise attribution.top, or data.images",
    ]
    return Sign("attribution", title, failed, evidence, _then(advice if failed else []))


def intervention(metrics: Json, row: Json, dose: Json) -> Sign:
    """Does the edit bring more images to their class than show it anyway, and are they still the same pictures?"""
    title = "The edit has no effect, or only by drawing another picture"
    effect, evidence = _effect(metrics, row)
    evidence += _curve(dose)
    if effect is None:
        return Sign("intervention", title, None, evidence)
    if not effect:
        advice = [
            "raise mitigation.calibration.largest or widen mitigation.window",
            "if the curve stays flat, the site does not decide the attribute: `difflens task=localise`",
        ]
        return Sign("intervention", title, True, evidence, _then(advice))
    clip, floor = row.get("clip_i_edited"), row.get("clip_i_floor")
    if not known(clip) or not known(floor) or floor >= 1:
        return Sign("intervention", title, None, f"{evidence} CLIP-I was not measured.")
    kept = (clip - floor) / (1 - floor)
    evidence += (
        f" CLIP-I of the edited is {number(clip, 3)}, of unrelated images {number(floor, 3)}: {percent(kept, 0)} of the way "
        "from another picture to the same one."
    )
    advice = ["edit less: mitigation.focus, a later mitigation.window, mode=margin; or another site"]
    return Sign("intervention", title, kept < LEAST_KEPT, evidence, _then(advice if kept < LEAST_KEPT else []))


def _effect(metrics: Json, row: Json) -> tuple[bool | None, str]:
    """Whether more images are where they should be than without the edit, None where that cannot be told."""
    reached, low, plain = (row.get(key) for key in ("reached", "reached_low", "reached_unedited"))
    if not row.get("edited"):
        return None, "No image was pushed."
    if known(reached) and known(low) and known(plain):
        ends = f"{number(100 * low, 1)}\N{EN DASH}{number(100 * row['reached_high'], 1)}"
        words = (
            f"{percent(reached)} ({ends}) of the images pushed show their class, {percent(plain)} of the same without."
        )
        return low > plain, words
    original = baseline(metrics) or {}
    before, after, high = fairness(original, "fd_hard"), fairness(row, "fd_hard"), fairness(row, "fd_high")
    if known(before) and known(after) and known(high):
        words = (
            f"FD hard is {number(after, 3)} (at most {number(high, 3)}) with the edit and {number(before, 3)} without."
        )
        # An unbiased model leaves nothing to be gained, and a small sample cannot show it.
        gained = None if fairness(original, "fd_low") == 0 else high < before
        return gained, words
    return None, "How many images reach their class was not measured."


def _curve(dose: Json) -> str:
    """The ends of the dose–response curve in words."""
    points = [
        (max(point["strength"].values(), key=abs), _mean(point.get("success") or {}))
        for point in dose.get("points") or []
        if point.get("strength")
    ]
    told = sorted((strength, success) for strength, success in points if success is not None)
    if len(told) < 2:
        return ""
    (first, low), (last, high) = told[0], told[-1]
    return (
        f" On the calibration's images {percent(low)} show it at strength {number(first, 2)} and {percent(high)} at "
        f"{number(last, 2)}."
    )


def _mean(values: Json) -> float | None:
    found = [value for value in values.values() if known(value)]
    return sum(found) / len(found) if found else None


def _then(advice: list[str]) -> str:
    """Pieces of advice as a sentence."""
    words = "; ".join(advice)
    return f"{words[:1].upper()}{words[1:]}." if words else ""
