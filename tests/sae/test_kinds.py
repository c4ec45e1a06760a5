"""BatchTopK, Matryoshka and JumpReLU: what each selects, learns and minimises."""

import pytest
import torch

from difflens.sae.batch_topk import BatchTopKAutoencoder
from difflens.sae.jumprelu import JumpReLUAutoencoder, _Above
from difflens.sae.losses import Objective
from difflens.sae.matryoshka import MatryoshkaAutoencoder


def sae_with_threshold() -> BatchTopKAutoencoder:
    torch.manual_seed(0)
    sae = BatchTopKAutoencoder(8, expansion=4, k=3).requires_grad_(False)
    for _ in range(30):
        sae.update_statistics(sae.encode(torch.randn(256, 8)))
    return sae


def test_training_keeps_the_largest_of_the_whole_batch() -> None:
    torch.manual_seed(1)
    sae = BatchTopKAutoencoder(8, expansion=4, k=3).train()
    x = torch.randn(20, 8) * torch.linspace(0.1, 3, 20)[:, None]
    positive = sae.pre_activations(x).relu()
    cut = positive.flatten().sort(descending=True).values[3 * 20 - 1]
    expected = torch.where(positive >= cut, positive, 0)
    assert (expected > 0).sum() == 60
    torch.testing.assert_close(sae.encode_dense(x), expected, rtol=0, atol=0)


def test_threshold_is_the_moving_average_of_the_smallest_kept_activation() -> None:
    torch.manual_seed(2)
    sae = BatchTopKAutoencoder(8, expansion=4, k=3, threshold_decay=0.9)
    minima = []
    for _ in range(3):
        codes = sae.encode(torch.randn(64, 8))
        minima.append(codes.values[codes.values > 0].min())
        sae.update_statistics(codes)
    torch.testing.assert_close(sae.threshold, 0.9 * (0.9 * minima[0] + 0.1 * minima[1]) + 0.1 * minima[2])
    assert "threshold" in sae.state_dict()


def test_when_sampling_a_token_does_not_depend_on_its_neighbours() -> None:
    sae = sae_with_threshold().eval()
    x = torch.randn(16, 8)
    among_giants = torch.cat([x, 100 * torch.randn(64, 8)])
    torch.testing.assert_close(sae.encode_dense(among_giants)[:16], sae.encode_dense(x), rtol=1e-5, atol=1e-6)
    sae.train()
    assert not sae.encode_dense(among_giants)[:16].any()


def test_the_learnt_threshold_keeps_k_latents_per_token_on_average() -> None:
    sae = sae_with_threshold().eval()
    l0 = (sae.encode_dense(torch.randn(8192, 8)) > 0).sum(1).double()
    assert abs(float(l0.mean()) - 3) < 0.1
    assert l0.std() > 0.5


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
