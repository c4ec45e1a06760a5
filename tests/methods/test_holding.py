"""Holding: other attributes are pushed back to where they were, only once they have left, and never by a neutral edit."""

import pytest
import torch

from difflens.attribution.statistics import CodeStatistics
from difflens.methods.difflens import FeatureEdit, selected_latents
from difflens.methods.holding import Holding
from difflens.probes.linear import LinearProbe
from difflens.sae.topk import TopKAutoencoder
from difflens.vocabulary import NO_FACE, UNTOUCHED, Attribute, FeatureSet, PerImage, Site

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
IMAGES = PerImage(TARGETS, {"age": torch.tensor([2, 0, 1, NO_FACE]), "smile": torch.tensor([0, 1, 1, NO_FACE])})


@pytest.fixture
def sae() -> TopKAutoencoder:
    torch.manual_seed(0)
    return TopKAutoencoder(6, expansion=2, k=8).requires_grad_(False).eval()


def certain(attribute: Attribute, index: int) -> LinearProbe:
    """A probe that reads one class everywhere."""
    probe = LinearProbe(4, len(attribute.classes), H[0].numel())
    probe.bias[:, index] = 50.0
    return probe


def edit(
    sae: TopKAutoencoder, attribute: Attribute, *, strength: float, reads: int | None, mode: str = "contrast"
) -> FeatureEdit:
    features = FeatureSet(attribute, LATENTS[attribute])
    latents, classes = selected_latents(features), len(attribute.classes)
    generator = torch.Generator().manual_seed(classes)
    made = FeatureEdit(
        sae,
        features,
        CodeStatistics(
            latents, torch.rand(classes, 4, len(latents), 2, 2, generator=generator), torch.ones(4, len(latents))
        ),
        site=Site(),
        mode=mode,
        gate=None if reads is None else certain(attribute, reads),
    )
    return made.with_strength(torch.full((classes,), strength))  # type: ignore[return-value]


def holding(sae: TopKAutoencoder, *, strength: float, age: int, smile: int) -> Holding:
    held = [edit(sae, AGE, strength=1.0, reads=age), edit(sae, SMILE, strength=1.0, reads=smile)]
    return Holding(edit(sae, GENDER, strength=strength, reads=None), held, ratio=1.5)


def test_a_neutral_edit_and_an_untouched_image_change_no_bit(sae: TopKAutoencoder) -> None:
    neutral = holding(sae, strength=0.0, age=0, smile=0)
    for h in (H, H.bfloat16()):
        assert torch.equal(neutral(h, 1, IMAGES), h)
    strong = neutral.with_strength(torch.tensor([2.0, 3.0]))
    assert torch.equal(strong(H, 1, IMAGES)[2], H[2])


@pytest.mark.parametrize("shown", [-3, -1, 2])
def test_each_image_is_told_its_own_classes(sae: TopKAutoencoder, shown: int) -> None:
    """What one image shows does not move its neighbours."""
    mitigation = holding(sae, strength=2.0, age=1, smile=0)
    changed = dict(IMAGES.shown) | {"age": torch.tensor([shown, 0, 1, NO_FACE])}
    edited = mitigation(H, 1, PerImage(TARGETS, changed))
    assert torch.equal(edited[1:], mitigation(H, 1, IMAGES)[1:])
    assert torch.equal(edited[0], mitigation(H, 1, IMAGES)[0]) == (shown == 2)


def test_nothing_is_held_where_it_has_not_left_or_was_never_seen(sae: TopKAutoencoder) -> None:
    mitigation = holding(sae, strength=2.0, age=2, smile=0)
    edited = mitigation(H, 1, IMAGES)
    alone = mitigation.edit(H, 1, IMAGES)
    torch.testing.assert_close(edited[0], alone[0])
    torch.testing.assert_close(edited[3], alone[3])


def test_what_has_left_is_pushed_back_by_the_models_own_difference(sae: TopKAutoencoder) -> None:
    mitigation = holding(sae, strength=2.0, age=1, smile=0)
    edited = mitigation(H, 1, IMAGES)
    own, back = mitigation.edit.statistics, mitigation.holders[0].statistics
    codes = sae.codes_of_map(H[:1])[0]
    delta = torch.zeros_like(codes)
    delta[own.latents] += torch.maximum(2.0 * (own.mean[0, 1] - own.mean[1, 1]), -codes[own.latents])
    delta[back.latents] += 2.0 * 1.5 * torch.maximum(back.mean[2, 1] - back.mean[1, 1], -codes[back.latents])
    torch.testing.assert_close(edited[:1], sae.add_to_map(H[:1], torch.maximum(delta, -codes)[None]))


def test_a_margin_in_nats_does_not_multiply_what_is_held(sae: TopKAutoencoder) -> None:
    """A strength of 8 asks for a margin of 8 nats, not for eight times the difference that the model makes."""
    held = [edit(sae, AGE, strength=1.0, reads=1)]
    plain, far = (edit(sae, GENDER, strength=r, reads=1, mode="margin") for r in (4.0, 8.0))
    assert torch.equal(plain.dose(IMAGES), far.dose(IMAGES))
    # The second image is of the class that is read already, by more than either margin: only its age is pushed back.
    weak, strong = (Holding(each, held, ratio=1.5)(H, 1, IMAGES) for each in (plain, far))
    assert torch.equal(weak[1], strong[1]) and not torch.equal(weak[1], H[1])
    codes, back = sae.codes_of_map(H[1:2])[0], held[0].statistics
    delta = torch.zeros_like(codes)
    delta[back.latents] = 1.5 * torch.maximum(back.mean[0, 1] - back.mean[1, 1], -codes[back.latents])
    torch.testing.assert_close(strong[1:2], sae.add_to_map(H[1:2], torch.maximum(delta, -codes)[None]))
