"""Holding: other attributes are pushed back to where they were, only once they have left, and never by a neutral edit."""

from itertools import product

import pytest
import torch

from difflens.attribution.statistics import CodeStatistics
from difflens.methods.holding import HoldingMitigation
from difflens.methods.sae_features import SaeFeatureMitigation, selected_latents
from difflens.probes.linear import LinearProbe
from difflens.sae.topk import TopKAutoencoder
from difflens.vocabulary import UNTOUCHED, Attribute, FeatureSet, Site

GENDER = Attribute("gender", ("female", "male"))
AGE = Attribute("age", ("young", "adult", "old"))
SMILE = Attribute("smile", ("no", "yes"))
LATENTS = {
    GENDER: {"female": (3, 7), "male": (5,)},
    AGE: {"young": (1,), "adult": (7,), "old": (2, 9)},
    SMILE: {"no": (0,), "yes": (5, 11)},
}
H = torch.randn(4, 6, 2, 2, generator=torch.Generator().manual_seed(3))
TARGETS = torch.tensor([0, 1, UNTOUCHED, 1])
SHOWN = torch.tensor([[2, 0], [0, 1], [1, 1], [-1, -1]])


@pytest.fixture
def sae() -> TopKAutoencoder:
    torch.manual_seed(0)
    return TopKAutoencoder(6, expansion=2, k=8).requires_grad_(False).eval()


def certain(attribute: Attribute, index: int) -> LinearProbe:
    """A probe that reads one class everywhere."""
    probe = LinearProbe(4, len(attribute.classes), H[0].numel())
    probe.bias[:, index] = 50.0
    return probe


def edit(sae: TopKAutoencoder, attribute: Attribute, *, strength: float, reads: int | None) -> SaeFeatureMitigation:
    features = FeatureSet(attribute, LATENTS[attribute])
    latents, classes = selected_latents(features), len(attribute.classes)
    generator = torch.Generator().manual_seed(classes)
    return SaeFeatureMitigation(
        sae,
        features,
        CodeStatistics(
            latents, torch.rand(classes, 4, len(latents), 2, 2, generator=generator), torch.ones(4, len(latents))
        ),
        site=Site(),
        mode="contrast",
        strength=torch.full((classes,), strength),
        gate=None if reads is None else certain(attribute, reads),
    )


def holding(sae: TopKAutoencoder, *, strength: float, age: int, smile: int) -> HoldingMitigation:
    held = [edit(sae, AGE, strength=1.0, reads=age), edit(sae, SMILE, strength=1.0, reads=smile)]
    return HoldingMitigation(edit(sae, GENDER, strength=strength, reads=None), held, ratio=1.5)


def test_a_neutral_edit_and_an_untouched_image_change_no_bit(sae: TopKAutoencoder) -> None:
    neutral = holding(sae, strength=0.0, age=0, smile=0)
    for h in (H, H.bfloat16()):
        assert torch.equal(neutral(h, 1, neutral.aims(TARGETS, SHOWN)), h)
    strong = neutral.with_strength(torch.tensor([2.0, 3.0]))
    assert torch.equal(strong(H, 1, strong.aims(TARGETS, SHOWN))[2], H[2])


def test_an_aim_is_read_back_as_target_and_shown_classes(sae: TopKAutoencoder) -> None:
    mitigation = holding(sae, strength=1.0, age=0, smile=0)
    rows = torch.tensor(list(product((UNTOUCHED, 0, 1), (-1, 0, 1, 2), (-1, 0, 1))))
    aims = mitigation.aims(rows[:, 0], rows[:, 1:])
    own, shown = mitigation._parts(aims)
    meant = torch.where(rows[:, :1] >= 0, rows, UNTOUCHED)
    assert torch.equal(torch.stack([own, *shown], 1), meant)
    assert len(aims.unique()) == 1 + 2 * 4 * 3


def test_nothing_is_held_where_it_has_not_left_or_was_never_seen(sae: TopKAutoencoder) -> None:
    mitigation = holding(sae, strength=2.0, age=2, smile=0)
    edited = mitigation(H, 1, mitigation.aims(TARGETS, SHOWN))
    alone = mitigation.edit(H, 1, TARGETS)
    torch.testing.assert_close(edited[0], alone[0])
    torch.testing.assert_close(edited[3], alone[3])


def test_what_has_left_is_pushed_back_by_the_models_own_difference(sae: TopKAutoencoder) -> None:
    mitigation = holding(sae, strength=2.0, age=1, smile=0)
    edited = mitigation(H, 1, mitigation.aims(TARGETS, SHOWN))
    own, back = mitigation.edit.statistics, mitigation._holders[0].statistics
    codes = sae.codes_of_map(H[:1])[0]
    delta = torch.zeros_like(codes)
    delta[own.latents] += torch.maximum(2.0 * (own.mean[0, 1] - own.mean[1, 1]), -codes[own.latents])
    delta[back.latents] += 2.0 * 1.5 * torch.maximum(back.mean[2, 1] - back.mean[1, 1], -codes[back.latents])
    torch.testing.assert_close(edited[:1], sae.add_to_map(H[:1], torch.maximum(delta, -codes)[None]))
