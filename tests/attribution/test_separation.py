"""Separation of single latents: agreement with counting pairs, and planted latents found."""

import torch
from torch import Tensor

from difflens.attribution.separation import best_latent, monosemanticity, paired_auc, separation


def test_auc_counts_pairs_with_ties_as_halves() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(4, (n, 3), generator=generator).float() for n in (7, 5))
    pairs = second[None] - first[:, None]
    counted = ((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean((0, 1))
    torch.testing.assert_close(paired_auc(first, second), counted)


def test_latents_that_tell_one_factor_alone_stand_out() -> None:
    tells = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0]])  # of two factors, by three latents
    noise = torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) * 0.5
    scores = torch.stack([separation(paired_auc(noise, noise + factor)) for factor in tells])
    torch.testing.assert_close(scores, torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0]]).double())
    assert monosemanticity(scores, 1).tolist() == [1.0, 0.0, 0.0]
    assert monosemanticity(scores, 0).tolist() == [-1.0, 0.0, 0.0]


def planted(images: int = 200) -> tuple[Tensor, dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """Codes of 50 latents that say nothing, but for 7, which says gender and, less clearly, hair."""
    generator = torch.Generator().manual_seed(0)
    gender = torch.randint(2, (images,), generator=generator)
    hair = torch.where(torch.rand(images, generator=generator) < 0.8, gender, 1 - gender)
    codes = torch.rand(images, 50, generator=generator)
    codes[:, 7] += 2.0 * (1 - gender)
    smile = torch.randint(2, (images,), generator=generator)
    classes = {"gender": ("female", "male"), "hair": ("short", "long"), "smile": ("no", "yes")}
    return codes, {"gender": gender, "hair": hair, "smile": smile}, classes


def test_the_best_latent_and_what_else_it_tells_are_found() -> None:
    codes, labels, classes = planted()
    found = best_latent(codes, labels, classes, "gender")
    assert found is not None and (found.latent, found.auc, found.other) == (7, 1.0, "hair")
    assert 0.7 < found.other_auc < 0.9  # type: ignore[operator]


def test_the_best_of_many_that_tell_nothing_is_no_better_than_chance() -> None:
    codes, labels, classes = planted()
    found = best_latent(codes[:, 8:], labels, classes, "gender")
    assert found is not None and abs(found.auc - 0.5) < 1.96 * found.error
    # On the images that it was chosen on, it would have passed for one that tells.
    chosen = codes[::2, 8:][:, [found.latent]]
    own = labels["gender"][::2] == 0
    assert separation(paired_auc(chosen[~own], chosen[own])) > 2 * 1.96 * found.error


def test_a_class_that_half_of_the_images_lack_tells_nothing() -> None:
    codes, labels, classes = planted(2)
    assert best_latent(codes, {"gender": labels["gender"]}, classes, "gender") is None
