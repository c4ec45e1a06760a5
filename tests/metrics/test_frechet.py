"""FID and KID as metrics: agreement with references, batching, ranks and precision."""

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from difflens.judges.protocol import ReferenceStatistics
from difflens.metrics.frechet import FrechetDistance, KernelDistance
from difflens.metrics.functional import frechet_distance, kernel_distance, mean_and_covariance


def cloud(n: int, dim: int = 6, *, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + shift


def statistics(features: Tensor) -> ReferenceStatistics:
    return ReferenceStatistics.from_features(features, extractor="pixels", resize="none")


@pytest.fixture(scope="module")
def features() -> tuple[Tensor, Tensor]:
    """Correlated features of reference images and of others."""
    mixing = torch.eye(24) + 0.3 * cloud(24, 24, seed=9)
    return cloud(300, 24, seed=0) @ mixing, cloud(300, 24, seed=1, shift=0.7) @ mixing


def test_frechet_metric_equals_torch_fidelity(features: tuple[Tensor, Tensor]) -> None:
    real, fake = features
    metric = FrechetDistance(24, statistics(real))
    metric.update(fake)
    result = metric.compute()
    moments = (fid_features_to_statistics(x.double()) for x in (fake, real))
    expected = fid_statistics_to_metric(*moments, verbose=False)["frechet_inception_distance"]
    assert result.distance == pytest.approx(expected, rel=1e-6)
    assert (result.n, result.reference_n, result.extractor, result.resize) == (300, 300, "pixels", "none")
    assert result.reference_sha256 == statistics(real).sha256


def test_kernel_metric_equals_torch_fidelity(features: tuple[Tensor, Tensor]) -> None:
    real, fake = features
    metric = KernelDistance(real, torch.arange(300))
    metric.update(fake, torch.arange(300))
    distance = metric.compute().distance
    whole = {"kid_subsets": 1, "kid_subset_size": 300, "verbose": False}
    expected = kid_features_to_metric(fake.double(), real.double(), **whole)
    assert distance == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)


def test_frechet_metric_ignores_batches_order_ranks_and_casts() -> None:
    reference, fake = statistics(cloud(80, seed=0)), cloud(61, seed=1, shift=0.7)
    expected = float(frechet_distance(mean_and_covariance(fake), (reference.mean, reference.covariance)))
    ranks = [FrechetDistance(6, reference), FrechetDistance(6, reference)]
    for metric in ranks:
        metric.set_dtype(torch.float16)
        torch.nn.ModuleList([metric]).half()
    for number, part in enumerate(fake.flip(0).split(7)):
        ranks[number % 2].update(part)
    ranks[0].merge_state(ranks[1])
    assert ranks[0].compute().distance == pytest.approx(expected, rel=1e-11)
    assert ranks[0].frechet_products.dtype == ranks[0].origin.dtype == torch.float64


def test_frechet_metric_keeps_digits_far_from_the_origin() -> None:
    real, fake = cloud(80, seed=0).double(), cloud(60, seed=1, shift=0.7).double()
    distances = []
    for offset in (0.0, 1e6):
        metric = FrechetDistance(6, statistics(real + offset))
        metric.update(fake + offset)
        distances.append(metric.compute().distance)
    assert distances[1] == pytest.approx(distances[0], rel=1e-7)


def test_frechet_metric_refuses_other_dimensions_and_single_images() -> None:
    reference = statistics(cloud(80, seed=0))
    with pytest.raises(ValueError, match="5 dimensions"):
        FrechetDistance(5, reference)
    metric = FrechetDistance(6, reference)
    with pytest.raises(ValueError, match=r"\[N, 6\]"):
        metric.update(torch.zeros(3, 5))
    metric.update(torch.zeros(1, 6))
    with pytest.raises(ValueError, match="two images"):
        metric.compute()


def test_kernel_metric_is_the_same_for_any_order_batches_and_ranks() -> None:
    reference, fake, ids = cloud(70, seed=2), cloud(50, seed=3, shift=0.3), torch.arange(1000, 1050)
    whole = KernelDistance(reference, ids, subsets=5, subset_size=20)
    whole.update(fake, ids)
    expected = whole.compute()
    assert expected.distance == pytest.approx(float(kernel_distance(fake, reference)), rel=1e-12)
    assert expected.subset_sd > 0 and (expected.n, expected.reference_n, expected.subset_size) == (50, 70, 20)
    shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(4))
    ranks = [KernelDistance(reference, ids.flip(0), subsets=5, subset_size=20) for _ in range(2)]
    for number, rows in enumerate(shuffled.split(9)):
        ranks[number % 2].update(fake[rows], ids[rows])
    ranks[1].merge_state(ranks[0])
    assert ranks[1].compute() == expected


def test_kernel_metric_counts_each_image_exactly_once() -> None:
    ids = torch.arange(4)
    metric = KernelDistance(cloud(5, seed=5), ids)
    metric.update(cloud(3, seed=6), ids[:3])
    with pytest.raises(ValueError, match=r"\[3\].*never given"):
        metric.compute()
    with pytest.raises(ValueError, match="more than once"):
        metric.update(cloud(2, seed=7), torch.tensor([2, 3]))
    padded = KernelDistance(cloud(5, seed=5), ids)
    padded.update(cloud(4, seed=6), ids)
    metric.merge_state(padded)
    with pytest.raises(ValueError, match="more than once"):
        metric.compute()
