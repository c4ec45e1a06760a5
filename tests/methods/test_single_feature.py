"""One latent at a time: raised by its class's usual map, lowered never below zero, all others left alone."""

import torch
from torch import Tensor

from difflens.attribution.statistics import CodeStatistics
from difflens.methods.sae_features import SaeFeatureMitigation
from difflens.methods.single_feature import SingleFeature
from difflens.sae.topk import TopKAutoencoder
from difflens.vocabulary import UNTOUCHED, Attribute, FeatureSet, Site

LATENTS = torch.tensor([3, 5, 7])
OWNER = torch.tensor([0, 1, 0])
TARGETS = torch.tensor([0, 1, 2, UNTOUCHED])
H = torch.randn(4, 6, 2, 2, generator=torch.Generator().manual_seed(3))


def single(strength: float) -> SingleFeature:
    torch.manual_seed(0)
    features = FeatureSet(Attribute("gender", ("female", "male")), {"female": (3, 7), "male": (5,)})
    usual = CodeStatistics(LATENTS, torch.rand(2, 4, 3, 2, 2), torch.ones(4, 3))
    sae = TopKAutoencoder(6, expansion=2, k=8).requires_grad_(False).eval()
    whole = SaeFeatureMitigation(sae, features, usual, site=Site(), mode="contrast", strength=torch.zeros(2))
    return SingleFeature(whole, OWNER, strength=strength)


def written(edit: SingleFeature, delta: Tensor) -> Tensor:
    return edit.whole.sae.add_to_map(H, delta, LATENTS)


def by_the_map(edit: SingleFeature) -> Tensor:
    """Δz by the map of each latent's owner at step 1, unlimited."""
    delta = torch.zeros(4, 3, 2, 2)
    for image, slot in enumerate((0, 1, 2)):
        delta[image, slot] = edit.strength * edit.whole.statistics.mean[OWNER[slot], 1, slot]
    return delta


def test_a_latent_is_raised_by_the_map_of_its_class() -> None:
    edit = single(6.0)
    made = edit(H, 1, TARGETS)
    torch.testing.assert_close(made, written(edit, by_the_map(edit)))
    assert torch.equal(made[3], H[3])


def test_a_latent_is_lowered_to_zero_and_no_further() -> None:
    edit = single(-6.0)
    codes = edit.whole.sae.codes_of_latents(H, LATENTS)
    limited = torch.maximum(by_the_map(edit), -codes)
    assert (limited != by_the_map(edit)).any() and (codes + limited).min() >= 0 and (limited < 0).any()
    torch.testing.assert_close(edit(H, 1, TARGETS), written(edit, limited))


def test_an_image_in_which_the_latent_is_silent_is_not_lowered_at_all() -> None:
    edit = single(-6.0)
    silent = -10 * edit.whole.sae.decoder[LATENTS].sum(0)[None, :, None, None].expand(1, 6, 2, 2)
    assert not edit.whole.sae.codes_of_latents(silent, LATENTS).any()
    assert torch.equal(edit(silent, 1, torch.tensor([1])), silent)
