"""Closed forms and gradients of the losses."""

import torch

from difflens.sae.losses import auxk_loss, denoising_loss_recovered, reconstruction_loss, token_variance


def test_reconstruction_by_the_mean_costs_one() -> None:
    x = torch.randn(100, 5, dtype=torch.float64) * 3 + 7
    loss = reconstruction_loss(x, x.mean(0).expand_as(x), token_variance(x))
    torch.testing.assert_close(loss, torch.ones((), dtype=torch.float64))


def test_each_token_is_divided_by_its_own_variance() -> None:
    x, x_hat = torch.tensor([[1.0, 0.0], [0.0, 4.0]]), torch.zeros(2, 2)
    assert reconstruction_loss(x, x_hat, torch.tensor([2.0, 32.0])) == 0.5


def test_auxk_of_all_dead_latents_against_its_formula() -> None:
    torch.manual_seed(0)
    error, a, decoder = torch.randn(6, 4), torch.randn(6, 10), torch.randn(10, 4)
    dead = torch.zeros(10, dtype=torch.bool)
    dead[[2, 5, 9]] = True
    explained = a.relu()[:, dead] @ decoder[dead]
    expected = 3 / 7 * (explained - error).square().sum() / (error - error.mean(0)).square().sum()
    torch.testing.assert_close(auxk_loss(error, a, decoder, dead=dead, k_aux=7), expected)


def test_auxk_uses_the_strongest_dead_latents_at_full_weight() -> None:
    torch.manual_seed(1)
    error, a, decoder = torch.randn(6, 4), torch.rand(6, 10), torch.randn(10, 4)
    strongest = torch.zeros_like(a).scatter(1, a.topk(2).indices, a.topk(2).values)
    expected = (strongest @ decoder - error).square().sum() / (error - error.mean(0)).square().sum()
    torch.testing.assert_close(auxk_loss(error, a, decoder, dead=torch.ones(10).bool(), k_aux=2), expected)


def test_auxk_gradient_reaches_dead_rows_only_and_not_the_error() -> None:
    torch.manual_seed(2)
    x = torch.randn(32, 4)
    w_enc, w_dec = torch.randn(2, 10, 4).requires_grad_().unbind(0)
    w_enc.retain_grad()
    w_dec.retain_grad()
    error = torch.randn(32, 4, requires_grad=True)
    dead = torch.arange(10) >= 7
    auxk_loss(error, x @ w_enc.T, w_dec, dead=dead, k_aux=3).backward()
    assert error.grad is None
    for weights in (w_enc, w_dec):
        assert weights.grad is not None
        assert torch.equal(weights.grad.norm(dim=1) > 0, dead)


def test_auxk_is_zero_without_dead_latents_or_without_residual() -> None:
    a, decoder = torch.randn(6, 10), torch.randn(10, 4)
    assert auxk_loss(torch.randn(6, 4), a, decoder, dead=torch.zeros(10).bool(), k_aux=2) == 0
    assert auxk_loss(torch.zeros(6, 4), a, decoder, dead=torch.ones(10).bool(), k_aux=2) == 0


def test_denoising_loss_recovered_is_one_for_the_original_and_zero_for_the_ablation() -> None:
    original, ablated = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.4, 0.7])
    recovered = denoising_loss_recovered(
        original=original, reconstructed=torch.stack([original, ablated, (original + 3 * ablated) / 4]), ablated=ablated
    )
    torch.testing.assert_close(recovered, torch.tensor([[1.0], [0.0], [0.25]]).expand(3, 3))
