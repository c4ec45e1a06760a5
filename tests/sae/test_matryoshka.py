"""Matryoshka: each prefix of the latents reconstructs by itself."""

import pytest
import torch

from difflens.sae.losses import Objective
from difflens.sae.matryoshka import MatryoshkaAutoencoder


def test_the_loss_is_the_mean_over_prefixes_of_what_each_leaves_unexplained() -> None:
    torch.manual_seed(0)
    sae, x = MatryoshkaAutoencoder(8, expansion=4, k=3, prefixes=(0.25, 0.5, 1)), torch.randn(64, 8)
    z, variance = sae.encode_dense(x).double(), torch.tensor(2.0)
    whole = sae.double()
    left = [(x - z[:, :m] @ whole.w_dec[:m] - whole.b_dec).square().sum(1).mean() / 2 for m in (8, 16, 32)]
    found = sae.float().loss(x, Objective(variance, aux_coefficient=0))
    torch.testing.assert_close(found.total.double(), sum(left) / 3)
    torch.testing.assert_close(found.x_hat, sae.decode(found.codes))


def test_with_one_prefix_it_is_batch_topk() -> None:
    torch.manual_seed(0)
    sae, x = MatryoshkaAutoencoder(8, expansion=4, k=3, prefixes=(1,)), torch.randn(64, 8)
    torch.testing.assert_close(sae.loss(x).total, super(MatryoshkaAutoencoder, sae).loss(x).total)


@pytest.mark.parametrize("prefixes", [(0.5, 0.25, 1), (0.5, 0.9), (0.001, 1), ()])
def test_prefixes_that_do_not_increase_to_the_whole_are_refused(prefixes: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must be shares of the 32 latents that increase to 1"):
        MatryoshkaAutoencoder(8, expansion=4, k=3, prefixes=prefixes)
