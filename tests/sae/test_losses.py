"""Closed forms and gradients of the losses, and the sparse gradient against the dense one."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from difflens.sae.base import SparseAutoencoder
from difflens.sae.batch_topk import BatchTopKAutoencoder, kth_largest
from difflens.sae.codes import SparseCodes, encode_sparsely
from difflens.sae.health import denoising_loss_recovered
from difflens.sae.losses import Objective, auxk_loss, reconstruction_loss, strongest, token_variance
from difflens.sae.topk import TopKAutoencoder


def auxk(error: Tensor, a: Tensor, decoder: Tensor, *, dead: Tensor, k_aux: int) -> Tensor:
    return auxk_loss(error, strongest(a[:, dead], k_aux), decoder[dead], k_aux=k_aux)


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
    torch.testing.assert_close(auxk(error, a, decoder, dead=dead, k_aux=7), expected)


def test_auxk_uses_the_strongest_dead_latents_at_full_weight_and_is_zero_without_residual() -> None:
    torch.manual_seed(1)
    error, a, decoder = torch.randn(6, 4), torch.rand(6, 10), torch.randn(10, 4)
    kept = torch.zeros_like(a).scatter(1, a.topk(2).indices, a.topk(2).values)
    expected = (kept @ decoder - error).square().sum() / (error - error.mean(0)).square().sum()
    everyone = torch.ones(10, dtype=torch.bool)
    torch.testing.assert_close(auxk(error, a, decoder, dead=everyone, k_aux=2), expected)
    assert auxk(torch.zeros(6, 4), a, decoder, dead=everyone, k_aux=2) == 0
    error.requires_grad_(), decoder.requires_grad_()
    auxk(error, a, decoder, dead=everyone, k_aux=2).backward()
    assert error.grad is None and decoder.grad is not None


def test_denoising_loss_recovered_is_one_for_the_original_and_zero_for_the_ablation() -> None:
    original, ablated = (torch.tensor(rows).repeat(1, 8).double() for rows in ([[0.1, 0.3]], [[0.5, 0.7]]))
    for reconstructed, expected in ((original, 1.0), (ablated, 0.0), ((original + 3 * ablated) / 4, 0.25)):
        found = denoising_loss_recovered(original=original, reconstructed=reconstructed, ablated=ablated)
        for each in found:
            torch.testing.assert_close(each, torch.tensor([expected]).double())


def test_denoising_loss_recovered_is_undefined_where_the_ablation_costs_nothing_beyond_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    original = torch.rand(2, 24, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, 24, generator=generator, dtype=torch.float64)
    ablated = original + torch.tensor([[0.0], [1.0]]) + 0.1 * noise
    found = denoising_loss_recovered(original=original, reconstructed=original + 0.1 * noise, ablated=ablated)
    assert bool(found.value[0].isnan()) and bool(found.low[0].isnan())
    assert 0.8 < found.low[1] <= found.value[1] <= found.high[1] <= 1.1


@pytest.mark.parametrize("width", [8, 64], ids=["dense", "sparse"])
@pytest.mark.parametrize("kind", ["topk", "batch_topk"])
def test_the_sparse_gradient_is_the_numerical_one(kind: str, width: int) -> None:
    torch.manual_seed(3)
    x, weight, bias = (torch.randn(*shape).double().requires_grad_() for shape in ((12, 5), (width, 5), (width,)))

    def batch(a: Tensor) -> SparseCodes:
        return SparseCodes.where((a >= kth_largest(a, 36)) & (a > 0), a)

    select = partial(strongest, k=3) if kind == "topk" else batch
    assert torch.autograd.gradcheck(lambda *parts: encode_sparsely(*parts, select)[0].values, (x, weight, bias))


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("n_dead", [0, 3, 40, 120])
@pytest.mark.parametrize("kind", [TopKAutoencoder, BatchTopKAutoencoder])
def test_the_loss_has_the_gradients_of_the_dense_formula(
    kind: type[SparseAutoencoder], n_dead: int, centre: bool
) -> None:
    torch.manual_seed(4)
    sae = kind(12, expansion=20, k=6, centre=centre).double().train()  # type: ignore[call-arg]
    for parameter in sae.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    x, dead = torch.randn(64, 12).double(), torch.arange(240) < n_dead
    sae.b_enc.data[dead] -= 1.5  # too weak to be chosen, yet positive on some token

    def dense() -> Tensor:
        a = F.linear(x - sae.b_dec if centre else x, sae.w_enc, sae.b_enc)
        codes = sae.select(a)
        x_hat = codes.dense(240) @ sae.w_dec + sae.b_dec
        loss = ((x - x_hat).square().sum(1)).mean() / token_variance(x)
        return loss + (auxk(x - x_hat, a, sae.w_dec, dead=dead, k_aux=5) / 4 if n_dead else 0)

    objective = Objective(observe=lambda _: dead, aux_coefficient=1 / 4, k_aux=5)
    results = [
        (total, *torch.autograd.grad(total, list(sae.parameters()))) for total in (sae.loss(x, objective)[0], dense())
    ]
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-9)
    touched = results[0][1][dead].norm(dim=1) > 0
    assert not n_dead or touched.any(), "AuxK reaches no dead row"


@pytest.mark.parametrize(
    "spread", [torch.zeros_like, torch.rand_like, lambda x: torch.arange(x.numel()).view_as(x) % 7.0]
)
def test_the_kth_largest_is_that_of_sorting_all(spread: Callable[[Tensor], Tensor]) -> None:
    values = spread(torch.empty(300, 500))
    for k in (1, 300, 4500, 150_000):
        assert kth_largest(values, k) == values.flatten().sort(descending=True).values[k - 1]


def test_codes_at_a_mask_are_its_values_in_as_many_slots_as_needed() -> None:
    values = torch.randn(5, 9)
    kept = torch.rand(5, 9) < 0.4
    kept[2] = False
    codes = SparseCodes.where(kept, values)
    assert torch.equal(codes.dense(9), torch.where(kept, values, 0)) and codes.indices.shape[1] == kept.sum(1).max()
    assert SparseCodes.where(kept[:0], values[:0]).values.shape == (0, 1)
