"""Separation of single latents: agreement with counting pairs, and planted latents found."""

import torch

from difflens.attribution.separation import monosemanticity, paired_auc, separation


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
