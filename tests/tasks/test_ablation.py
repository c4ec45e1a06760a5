"""Silencing on a planted model: what decides the class is known, and so is what each set of latents does to it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from difflens.attribution.select import ablation_sets
from difflens.attribution.statistics import CodeStatistics
from difflens.methods.h_direction import HDirection
from difflens.sae.topk import TopKAutoencoder
from difflens.stages.attribution import Located
from difflens.store.artifacts import Artifact
from difflens.study.workbench import Workbench
from difflens.tasks import ablation
from difflens.training.attribution_module import AttributionResult
from difflens.vocabulary import Attribute, FeatureScores, FeatureSet, GenerationPlan, PerImage, Site

GENDER = Attribute("gender", ("female", "male"))
STEPS, WIDTH, IMAGES = 2, 8, 12
LABELS = torch.arange(IMAGES) % 2


def planted() -> Tensor:
    """Activations [N, D, 1, 1]: channel 0 says female, channel 1 says male, every other one fires and says nothing."""
    h = torch.full((IMAGES, WIDTH, 1, 1), 1.0)
    h[torch.arange(IMAGES), LABELS] = 2.0
    return h


def located() -> Located:
    """An autoencoder whose latents are the channels, and scores that put the right latent first."""
    sae = TopKAutoencoder(WIDTH, expansion=1, k=WIDTH).requires_grad_(False).eval()
    for matrix in (sae.w_enc, sae.w_dec):
        matrix.copy_(torch.eye(WIDTH))
    scores = torch.zeros(2, STEPS, WIDTH)
    scores[0, :, 0] = scores[1, :, 1] = 1.0
    result = AttributionResult(FeatureScores(GENDER, scores), torch.ones(2, STEPS, WIDTH), 0.0)
    features = FeatureSet(GENDER, {"female": (0,), "male": (1,)})
    statistics = CodeStatistics(torch.tensor([0, 1]), torch.ones(2, STEPS, 2, 1, 1), torch.ones(STEPS, 2))
    return Located(Artifact("statistics", "0", Path(), {}, {}), result, features, statistics, sae)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Workbench:
    """A workbench whose model is the planted one: images are its activations, as they are after the edit."""

    def generate(_: object, __: object, plan: GenerationPlan, *, edit: Any) -> Tensor:
        return edit(planted()[plan.image_ids], 1, plan.per_image())

    monkeypatch.setattr(ablation, "generate", generate)
    made = Workbench.__new__(Workbench)
    cfg = OmegaConf.create({"task": {"images": 3, "size": 1}, "mitigation": {"update": "symmetric"}})
    made.__dict__.update(cfg=cfg, attribute=GENDER, site=Site(), model=None, method=HDirection(update="symmetric"))
    monkeypatch.setattr(Workbench, "trainer", lambda self, *_, **__: None)
    monkeypatch.setattr(Workbench, "scored", lambda self, h: h[:, :2, 0, 0].argmax(1))
    return made


def test_silencing_takes_the_latents_away_and_leaves_every_other_one(bench: Workbench) -> None:
    edit = ablation.silencer(bench, located(), FeatureSet(GENDER, {"female": (0, 4), "male": (0, 4)}))
    before = planted()
    after = edit(before, 1, PerImage(LABELS))
    assert after[:, [0, 4]].abs().max() == 0
    rest = [1, 2, 3, 5, 6, 7]
    assert torch.equal(after[:, rest], before[:, rest])


@pytest.mark.parametrize("name", GENDER.classes)
def test_only_the_latent_that_decides_takes_the_class_away(bench: Workbench, name: str) -> None:
    found = located()
    sets = ablation_sets(found.result.scores, found.result.activation.sum(1), size=1, seed=0)
    plan = GenerationPlan(0, (GENDER.index(name) == LABELS).nonzero()[:, 0])
    kept = {kind: ablation._kept(bench, found, name, plan, group) for kind, group in sets[name].items()}
    assert {kind: float(each.double().mean()) for kind, each in kept.items()} == {
        "top": 0.0,
        "random": 1.0,
        "bottom": 1.0,
    }
