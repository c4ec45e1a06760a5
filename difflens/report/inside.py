"""Sections on the inside of the model: top features, the autoencoder's health, the probe."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from difflens.report.images import embed
from difflens.report.model_figures import draw_density, draw_feature, draw_probe, draw_sae_steps
from difflens.report.run_folder import Json, RunFolder
from difflens.report.svg import inline_svg
from difflens.report.wording import number, percent, points

MOST_CARDS = 12
"""Cards on a page, shared among the classes, so that the report stays small."""


def features(run: RunFolder, classes: Sequence[str]) -> Mapping[str, Any] | None:
    """Cards of the strongest latents of each class, by rank."""
    entries = [entry for entry in run.report.get("features") or [] if isinstance(entry, dict)]
    if not entries:
        return None
    groups = list(dict.fromkeys([*classes, *(str(entry.get("class")) for entry in entries)]))
    limit = max(1, MOST_CARDS // len(groups))
    cards = []
    for name in groups:
        ranked = sorted((e for e in entries if str(e.get("class")) == name), key=lambda e: e.get("rank") or 0)
        cards += [feature_card(run, entry, classes) for entry in ranked[:limit]]
    attribution = run.report.get("attribution") or {}
    gap = attribution.get("completeness_gap")
    return {
        "cards": cards[:MOST_CARDS],
        "in_all": len(entries),
        "scorer": attribution.get("method"),
        "gap": None if gap is None else f"{gap:.1e}",
    }


def feature_card(run: RunFolder, entry: Json, classes: Sequence[str]) -> dict[str, Any]:
    """One latent: its strips of images, its curves, and what editing it alone does to the shares."""
    latent = int(entry["latent"])
    name = f"latent-{latent}-{entry.get('rank', 0)}-{_position(classes, entry.get('class'))}"
    figure = None
    if entry.get("score_per_step") or entry.get("activation_per_step"):
        draw = partial(draw_feature, feature=entry, classes=classes)
        figure = inline_svg(draw, (5.2, 2.1), name=name, label=f"latent {latent} over the steps")
    paths = {part: entry.get(part) for part in ("top", "effect")}
    strips = {part: embed(run.path / str(path), longest=640) if path else None for part, path in paths.items()}
    shift = ", ".join(f"{c} {points(change)}" for c, change in (entry.get("effect_shift") or {}).items())
    return {
        "latent": latent,
        "class": str(entry.get("class", "?")),
        "rank": entry.get("rank"),
        "score": number(entry.get("score"), 4),
        "figure": figure,
        "shift": shift,
        **strips,
    }


def _position(classes: Sequence[str], name: Any) -> int:
    return list(classes).index(name) if name in classes else len(classes)


def sae(run: RunFolder) -> Mapping[str, Any] | None:
    """How well and how sparsely the autoencoder reconstructs."""
    data = run.report.get("sae")
    if not data:
        return None
    numbers = [
        ("latents", data.get("width")),
        ("active per token, at most (k)", data.get("k")),
        ("channels of a token", data.get("dim")),
        ("active per token, measured (L0)", number(data.get("l0"), 1)),
        ("fraction of variance unexplained", number(data.get("fvu"), 4)),
        ("latents that never fired", percent(data.get("dead_share"))),
    ]
    figures = []
    if data.get("fvu_per_step") or data.get("loss_recovered_per_step"):
        width = 7.2 if data.get("fvu_per_step") and data.get("loss_recovered_per_step") else 4.2
        label = "reconstruction at every denoising step"
        figures.append(inline_svg(partial(draw_sae_steps, sae=data), (width, 2.5), name="sae", label=label))
    if (data.get("density") or {}).get("counts"):
        label = "how often latents fire"
        draw = partial(draw_density, density=data["density"])
        figures.append(inline_svg(draw, (4.6, 2.5), name="density", label=label))
    return {"numbers": [(label, value) for label, value in numbers if value is not None], "figures": figures}


def probe(run: RunFolder) -> Mapping[str, Any] | None:
    """From which step on the attribute can be read."""
    data = run.report.get("probe")
    if not data or not data.get("accuracy_per_step"):
        return None
    label = "accuracy of the probe at every denoising step"
    figure = inline_svg(partial(draw_probe, probe=data), (5.2, 2.6), name="probe", label=label)
    measured = [value for value in data["accuracy_per_step"] if value is not None]
    best = max(measured, default=None)
    return {
        "figure": figure,
        "images": data.get("images_per_class"),
        "best": percent(best),
        "best_step": data["accuracy_per_step"].index(best) if measured else None,
        "chance": percent(data.get("chance")),
    }
