"""BatchTopK: the batch decides in training, the learnt threshold when sampling."""

import torch

from difflens.sae.batch_topk import BatchTopKAutoencoder


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
