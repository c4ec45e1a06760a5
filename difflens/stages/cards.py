"""Feature cards: what makes a latent fire, when, and what raising it alone does to an image."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from difflens.data.activations import ActivationStore
from difflens.methods.difflens import FeatureEdit, SingleFeature
from difflens.stages.activations import collect
from difflens.stages.calibrate import Prepared
from difflens.stages.plans import judged_labels, learning_plan
from difflens.store.artifacts import Artifact
from difflens.study.workbench import Workbench
from difflens.training.steering_module import generate

SHOWN = 8
"""Images per card."""

RAISED = 6.0
"""Multiple of the latent's usual map by which a card raises it."""


@dataclass(frozen=True)
class Card:
    """A latent, the class it was selected for and its rank there (from 1)."""

    latent: int
    name: str
    rank: int


def draw_cards(bench: Workbench, prepared: Prepared) -> tuple[Artifact | None, list[dict[str, Any]]]:
    """The cards of the strongest features, as PNG strips in an artifact, and what the report says of each.

    Nothing for a method without sparse features.
    """
    if prepared.located is None or not isinstance(prepared.own, FeatureEdit):
        return None, []
    chosen = choose(prepared, bench.cfg.metric.cards)
    activations, store = collect(bench)
    spec = {
        "activations": activations.fingerprint,
        "attribution": prepared.located.artifact.fingerprint,
        "cards": [[card.latent, card.name] for card in chosen],
        "update": prepared.own.update,
        "shown": SHOWN,
        "raised": RAISED,
    }

    def make(folder: Path) -> None:
        shifts = _draw_effects(bench, prepared, store, chosen, folder)
        for card in chosen:
            _draw_top(prepared, store, card, folder)
        (folder / "shifts.json").write_text(json.dumps(shifts))

    with bench.run.stage("cards"):
        artifact = bench.run.artifact("cards", spec, make)
    shifts = json.loads((artifact.folder / "shifts.json").read_text())
    found = [_describe(prepared, card, shift) for card, shift in zip(chosen, shifts, strict=True) if shift]
    if len(found) < len(chosen):
        bench.run.say(f"cards: {len(found)} of {len(chosen)}; the others have no learning image left to be shown on")
    return artifact, found


def choose(prepared: Prepared, count: int) -> list[Card]:
    """The strongest features of all classes in turn, each latent once."""
    assert prepared.located is not None
    features = prepared.located.features
    ranked = [
        Card(latents[rank], name, rank + 1)
        for rank in range(max(map(len, features.latents.values())))
        for name, latents in features.latents.items()
        if rank < len(latents)
    ]
    # Reversed: of a latent that several classes share the best rank is written last, and stays.
    first = {card.latent: card for card in reversed(ranked)}
    return [card for card in ranked if first[card.latent] is card][:count]


def _describe(prepared: Prepared, card: Card, shift: dict[str, float]) -> dict[str, Any]:
    assert prepared.located is not None
    result, classes = prepared.located.result, prepared.located.features.attribute.classes
    scores = result.scores.scores[classes.index(card.name), :, card.latent]
    activation = result.activation[:, :, card.latent]
    return {
        "latent": card.latent,
        "class": card.name,
        "rank": card.rank,
        "score": float(scores.sum()),
        "score_per_step": scores.tolist(),
        "activation_per_step": {name: activation[i].tolist() for i, name in enumerate(classes)},
        "top": f"images/features/{card.latent}_top.png",
        "effect": f"images/features/{card.latent}_effect.png",
        "effect_shift": shift,
    }


def _draw_top(prepared: Prepared, store: ActivationStore, card: Card, folder: Path) -> None:
    """Images on which the latent fires most at its busiest step, with the map of where, below each."""
    assert prepared.located is not None
    step = int(prepared.located.result.activation[:, :, card.latent].sum(0).argmax())
    latent = torch.tensor([card.latent])
    maps = store.at_step(step)
    # In pieces, since maps are stored in half precision and become twice as large.
    encode = prepared.located.autoencoder.codes_of_latents
    codes = torch.cat([encode(part.float(), latent)[:, 0] for part in maps.split(256)])
    top = codes.sum((-1, -2)).argsort(descending=True)[:SHOWN]
    images = store.images[top]
    heat = torch.nn.functional.interpolate(codes[top][:, None], size=images.shape[-2:], mode="bilinear")[:, 0]
    # One scale for all images of a card, so that their colours compare; a silent latent divides by no zero.
    overlaid = _overlay(images, heat / heat.amax().clamp_min(1e-12))
    _save(torch.stack([images, overlaid]), folder / f"{card.latent}_top.png")


def _draw_effects(
    bench: Workbench, prepared: Prepared, store: ActivationStore, cards: list[Card], folder: Path
) -> list[dict[str, float]]:
    """Draw images lacking a card's class before and after raising its latent; returns each class's change of probability.

    No image is shown on two cards; a card for which none is left has neither pictures of its effect nor a change.
    """
    whole, classes = prepared.own, bench.attribute.classes
    assert isinstance(whole, FeatureEdit)
    latents = whole.statistics.latents
    labels = judged_labels(bench, store, bench.attribute)
    owner = torch.zeros(len(latents), dtype=torch.int64)
    free = torch.ones(len(labels), dtype=torch.bool)
    rows, targets = [], []
    for card in cards:
        slot = int((latents == card.latent).nonzero())
        owner[slot] = classes.index(card.name)
        # Negative labels are images without a face, of which no class can be told.
        rows.append(((labels != owner[slot]) & (labels >= 0) & free).nonzero()[:SHOWN, 0])
        free[rows[-1]] = False
        # `SingleFeature` takes the target for the latent's place, not for a class.
        targets.append(torch.full((len(rows[-1]),), slot))
    plan = learning_plan(bench).take(torch.cat(rows)).towards(torch.cat(targets))
    edit = SingleFeature(whole, owner, strength=RAISED)
    # All cards in one go: a card alone would fill whole micro-batches for its few images. Cards are drawn for the
    # report, by the first rank alone, and a trainer of several would wait for the others.
    trainer = bench.trainer("cards", alone=True)
    made = generate(trainer, bench.model, plan, edit=edit).split([len(part) for part in rows])
    shifts: list[dict[str, float]] = []
    for card, positions, after in zip(cards, rows, made, strict=True):
        if len(positions) == 0:
            shifts.append({})
            continue
        before = store.images[positions]
        _save(torch.stack([before, after]), folder / f"{card.latent}_effect.png")
        # A row of NaN is an image in which the judge finds no face.
        change = [bench.labels(images)[1].softmax(-1).nanmean(0) for images in (before, after)]
        shifts.append(dict(zip(classes, (change[1] - change[0]).tolist(), strict=True)))
    return shifts


def _overlay(images: Tensor, heat: Tensor) -> Tensor:
    """The images in grey, with heat [n, H, W] in [0, 1] laid over them in orange."""
    grey = images.float().mean(1, keepdim=True).expand_as(images) * 0.6
    orange = torch.tensor([230.0, 159.0, 0.0])[None, :, None, None]
    alpha = heat[:, None]
    return (grey * (1 - alpha) + orange * alpha).round().byte()


def _save(rows: Tensor, path: Path) -> None:
    """Write rows of images [R, n, 3, H, W] (uint8) as one PNG, a pixel of white between them."""
    padded = torch.nn.functional.pad(rows, (0, 1, 0, 1), value=255)
    count, n, channels, height, width = padded.shape
    sheet = padded.permute(0, 3, 1, 4, 2).reshape(count * height, n * width, channels)
    Image.fromarray(np.asarray(sheet)).save(path)
