"""The strengths of all classes act on every image at once."""

import pytest
import torch

from difflens.attribution.statistics import CodeStatistics
from difflens.methods.difflens import FeatureEdit
from difflens.models.model import DiffusionModel
from difflens.sae.topk import TopKAutoencoder
from difflens.vocabulary import EVERY_CLASS, UNTOUCHED, Attribute, FeatureSet, GenerationPlan, PerImage, Site

GENDER = Attribute("gender", ("female", "male"))
LATENTS = torch.tensor([3, 5, 7, 11])
H = torch.randn(3, 16, 4, 4, generator=torch.Generator().manual_seed(3))
ALL = PerImage(torch.full((3,), EVERY_CLASS))


@pytest.fixture
def sae() -> TopKAutoencoder:
    torch.manual_seed(0)
    made = TopKAutoencoder(16, expansion=2, k=16)
    with torch.no_grad():
        made.b_dec.normal_()
    return made.requires_grad_(False).eval()


def everyone(sae: TopKAutoencoder, female: float, male: float, *, shared: bool = False, **settings: str):
    """`shared`: latent 5 belongs to both classes."""
    features = FeatureSet(GENDER, {"female": (3, 7, 5) if shared else (3, 7), "male": (5, 11)})
    nothing = CodeStatistics(LATENTS, torch.zeros(2, 5, 4, 4, 4), torch.full((5, 4), 2.0))
    strength = torch.tensor([female, male])
    edit = FeatureEdit(sae, features, nothing, site=Site(), **{"mode": "scale", "update": "symmetric", **settings})
    return edit.with_strength(strength)


class ScaledAtOnce:
    """The reference: every selected code times its factor, decoded and added."""

    site, update = Site(), "symmetric"

    def __init__(self, sae: TopKAutoencoder, factors: torch.Tensor) -> None:
        self.sae, self.factors = sae, factors

    def active(self, step: int, steps: int) -> bool:
        return True

    def __call__(self, h: torch.Tensor, step: int, images: PerImage) -> torch.Tensor:
        codes = self.sae.codes_of_latents(h.float(), LATENTS)
        return self.sae.add_to_map(h, (self.factors[:, None, None] - 1) * codes, LATENTS)


@pytest.mark.parametrize(("female", "male"), [(1.0, 1.43), (0.5, 3.0)])
def test_the_edit_scales_the_features_of_all_classes_at_once_bit_by_bit(
    sae: TopKAutoencoder, female: float, male: float
) -> None:
    factors = torch.tensor([female, male, female, male])
    expected = ScaledAtOnce(sae, factors)(H, 1, ALL)
    assert torch.equal(everyone(sae, female, male)(H, 1, ALL), expected)
    assert not torch.equal(expected, H)


def test_images_are_those_of_all_features_scaled_bit_by_bit(model: DiffusionModel, sae: TopKAutoencoder) -> None:
    edit = everyone(sae, 1.0, 4.0)
    ids = torch.arange(6)
    plan = GenerationPlan(7, ids, torch.full((6,), EVERY_CLASS))

    def images(change: object) -> torch.Tensor:
        return torch.cat([batch.images for batch in model.sample(plan, method=change)])  # type: ignore[arg-type]

    made = images(edit)
    assert torch.equal(made, images(ScaledAtOnce(sae, torch.tensor([1.0, 4.0, 1.0, 4.0]))))
    assert not torch.equal(made, images(None))


def test_a_latent_of_two_classes_is_scaled_by_both_and_raised_by_both(sae: TopKAutoencoder) -> None:
    factors = torch.tensor([2.0, 6.0, 2.0, 3.0])
    scaled = ScaledAtOnce(sae, factors)(H, 1, ALL)
    torch.testing.assert_close(everyone(sae, 2.0, 3.0, shared=True)(H, 1, ALL), scaled)
    raised = everyone(sae, 2.0, 3.0, shared=True, mode="add")(H, 1, ALL)
    delta = 2 * torch.tensor([2.0, 5.0, 2.0, 3.0])[None, :, None, None].expand(3, 4, 4, 4)
    torch.testing.assert_close(raised, sae.add_to_map(H, delta, LATENTS))


def test_neutral_strengths_and_untouched_images_change_no_bit(sae: TopKAutoencoder) -> None:
    assert torch.equal(everyone(sae, 1.0, 1.0)(H, 1, ALL), H)
    targets = PerImage(torch.tensor([EVERY_CLASS, UNTOUCHED, EVERY_CLASS]))
    assert torch.equal(everyone(sae, 1.0, 9.0)(H, 1, targets)[1], H[1])
    assert everyone(sae, 1.0, 9.0).with_strength(torch.ones(2)).neutral == 1
    assert torch.equal(everyone(sae, 1.0, 9.0).with_strength(torch.ones(2))(H, 1, ALL), H)


def test_under_the_official_protocol_every_image_gets_the_bias_once(sae: TopKAutoencoder) -> None:
    plain, official = (everyone(sae, 1.0, 1.43, protocol=name)(H, 1, ALL) for name in ("difflens", "official"))
    torch.testing.assert_close(official - plain, sae.b_dec[None, :, None, None].expand_as(H))
