"""JumpReLU: thresholds of their own, learnt by the kernel's estimate of how the mean of a step moves."""

import pytest
import torch

from difflens.sae.jumprelu import JumpReLUAutoencoder, _Above
from difflens.sae.losses import Objective


def started(**settings: float) -> tuple[JumpReLUAutoencoder, torch.Tensor]:
    torch.manual_seed(0)
    sae, x = JumpReLUAutoencoder(8, expansion=4, k=3, **settings), torch.randn(4096, 8)
    sae.loss(x)
    return sae, x


def test_training_starts_where_k_latents_of_a_token_are_active_on_average() -> None:
    sae, x = started()
    assert abs(float((sae.encode_dense(x) > 0).sum(1).double().mean()) - 3) < 0.01
    assert torch.equal(sae.threshold, sae.threshold[:1].expand(32))


def test_thresholds_start_alike_on_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = started()[0].threshold
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda cut: cut.mul_(3))  # the other rank's is twice ours
    torch.testing.assert_close(started()[0].threshold, 1.5 * alone)


def test_the_kernel_estimates_how_the_mean_number_of_active_latents_moves() -> None:
    activations = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(1))
    threshold = torch.tensor([0.5], requires_grad=True)
    _Above.apply(activations, threshold, 0.2).mean().backward()
    density = torch.distributions.Normal(0, 1).log_prob(torch.tensor(0.5)).exp()
    torch.testing.assert_close(threshold.grad, -density[None], rtol=0.02, atol=0)


def test_too_many_active_latents_raise_the_thresholds_and_too_few_lower_them() -> None:
    for k, sign in ((1, -1), (9, 1)):
        sae, x = started(sparsity=1000.0)
        sae.k = k
        sae.loss(x, Objective(aux_coefficient=0)).total.backward()
        assert sae.log_threshold.grad is not None
        share = (sae.log_threshold.grad.sign() == sign).float().mean()
        assert share > 0.9, (k, share)


def test_a_latent_at_or_below_its_threshold_is_silent_and_one_above_keeps_its_value() -> None:
    sae, x = started()
    a, z = sae.pre_activations(x), sae.encode_dense(x)
    assert torch.equal(z, torch.where(a > sae.threshold, a, 0.0))
