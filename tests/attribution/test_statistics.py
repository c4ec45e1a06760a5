"""What single latents usually do in images of each class."""

import pytest
import torch

from difflens.attribution.statistics import code_statistics, effect_coding
from difflens.sae.topk import TopKAutoencoder


@pytest.fixture
def sae() -> TopKAutoencoder:
    torch.manual_seed(0)
    return TopKAutoencoder(6, expansion=2, k=8).requires_grad_(False).eval()


def test_statistics_are_those_of_all_images_whatever_the_batches(sae: TopKAutoencoder) -> None:
    maps = torch.randn(10, 6, 2, 2, generator=torch.Generator().manual_seed(9))
    labels, latents = torch.tensor([0, 1] * 5)[:, None], torch.tensor([1, 4])
    whole = [(maps, labels, 0), (maps * 2, labels, 1)]
    parts = [(m[i : i + 3], y[i : i + 3], s) for m, y, s in whole for i in range(0, 10, 3)]
    a, b = (code_statistics(sae, latents, batches, sizes=(2,), steps=2) for batches in (whole, parts))
    torch.testing.assert_close(a.mean, b.mean)
    torch.testing.assert_close(a.level, b.level)
    codes = sae.codes_of_latents(maps, latents)
    torch.testing.assert_close(a.mean[1, 0], codes[1::2].mean(0))
    torch.testing.assert_close(a.level[0, 1], codes[:, 1][codes[:, 1] > 0].mean())


def test_a_class_is_not_charged_with_what_it_happens_to_share_with_another_attribute(sae: TopKAutoencoder) -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.cat([torch.tensor([[0, 0], [1, 1]]).repeat(40, 1), torch.tensor([[0, 1], [1, 0]]).repeat(10, 1)])
    gender, age = torch.randn(2, 6, 2, 2, generator=generator)
    sae.select = lambda activations: TopKAutoencoder(6, expansion=2, k=12).select(
        activations + 50
    )  # every code is affine
    maps = gender * labels[:, 0, None, None, None] + age * labels[:, 1, None, None, None]
    latents = torch.arange(12)
    found = code_statistics(sae, latents, [(maps, labels, 0)], sizes=(2, 2), steps=1)
    expected = torch.einsum("md,dhw->mhw", sae.w_enc, gender)
    torch.testing.assert_close(found.mean[1, 0] - found.mean[0, 0], expected, rtol=1e-4, atol=1e-4)


def test_effects_sum_to_zero_over_the_classes() -> None:
    design = effect_coding(torch.tensor([[0, 2], [1, 0], [1, 1]]), (2, 3))
    assert design.tolist() == [[1, 1, -1, -1], [1, -1, 1, 0], [1, -1, 0, 1]]
