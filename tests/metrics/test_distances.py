"""Fréchet and kernel distances against closed forms and independent implementations."""

import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from difflens.metrics.functional import frechet_distance, kernel_distance, kernel_subsets, mean_and_covariance


def cloud(n: int, dim: int, *, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(dim) + 0.3 * torch.randn(dim, dim, generator=generator) / dim**0.5
    return torch.randn(n, dim, generator=generator) @ mixing + shift


def test_frechet_distance_of_diagonal_gaussians_is_closed() -> None:
    a, b = torch.tensor([4.0, 1.0, 0.25]).double(), torch.tensor([1.0, 9.0, 0.0]).double()
    mean = torch.tensor([1.0, -2.0, 0.5]).double()
    expected = mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    zero = torch.zeros(3).double()
    assert float(frechet_distance((zero, a.diag()), (mean, b.diag()))) == pytest.approx(float(expected), rel=1e-12)
    assert float(frechet_distance((mean, b.diag()), (zero, a.diag()))) == pytest.approx(float(expected), rel=1e-12)


def test_frechet_distance_agrees_with_scipy_and_torchmetrics() -> None:
    a, b = (mean_and_covariance(cloud(200, 12, seed=seed, shift=seed)) for seed in (0, 1))
    root = torch.from_numpy(sqrtm((a.covariance @ b.covariance).numpy()).real)
    reference = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance - 2 * root).trace()
    found = float(frechet_distance(a, b))
    assert found == pytest.approx(float(reference), rel=1e-10)
    assert found == pytest.approx(float(_compute_fid(*a, *b)), rel=1e-10)
    assert found == pytest.approx(float(frechet_distance(b, a)), rel=1e-10)


def test_frechet_distance_is_stable_with_fewer_images_than_dimensions() -> None:
    x, y = cloud(20, 96, seed=2).double(), cloud(31, 96, seed=3, shift=0.2).double()
    a, b = mean_and_covariance(x), mean_and_covariance(y)
    # tr (Σ_x Σ_y)^½ is the nuclear norm of the cross Gram matrix, which never forms a covariance.
    gram = (x - x.mean(0)) @ (y - y.mean(0)).mT
    overlap = torch.linalg.svdvals(gram).sum() / (19 * 30) ** 0.5
    expected = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    assert float(frechet_distance(a, b)) == pytest.approx(float(expected), rel=1e-10)
    assert float(frechet_distance(b, a)) == pytest.approx(float(expected), rel=1e-6)
    assert abs(float(frechet_distance(a, a))) < 1e-9


def test_frechet_distance_from_a_point_is_the_other_variance() -> None:
    mean, covariance = mean_and_covariance(cloud(50, 4, seed=4))
    point = (mean, torch.zeros(4, 4).double())
    for pair in ((point, (mean, covariance)), ((mean, covariance), point)):
        assert float(frechet_distance(*pair)) == pytest.approx(float(covariance.trace()), rel=1e-12)


def test_frechet_distance_grows_with_the_squared_shift() -> None:
    mean, covariance = mean_and_covariance(cloud(50, 4, seed=5))
    assert float(frechet_distance((mean, covariance), (mean + 3, covariance))) == pytest.approx(36, rel=1e-12)


def test_frechet_distance_refuses_unusable_features() -> None:
    mean, covariance = mean_and_covariance(cloud(50, 4, seed=5))
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance((mean * float("nan"), covariance), (mean, covariance))
    with pytest.raises(ValueError, match="two rows"):
        mean_and_covariance(torch.zeros(1, 4))


def test_kernel_distance_agrees_with_torchmetrics_for_any_block() -> None:
    x, y = cloud(60, 8, seed=6).double(), cloud(60, 8, seed=7, shift=0.5).double()
    expected = float(poly_mmd(x, y))
    for block in (7, 60, 2048):
        assert float(kernel_distance(x, y, block=block)) == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_of_unequal_sizes_is_the_pairwise_sum() -> None:
    x, y = cloud(4, 3, seed=8).double(), cloud(6, 3, seed=9).double()

    def kernel(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    def within(z: Tensor) -> float:
        pairs = [kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
        return sum(pairs) / len(pairs)

    across = sum(kernel(a, b) for a in x for b in y) / 24
    assert float(kernel_distance(x, y)) == pytest.approx(within(x) + within(y) - 2 * across, rel=1e-12)


def test_kernel_distance_is_unbiased_at_zero_and_positive_for_a_shift() -> None:
    generator = torch.Generator().manual_seed(10)
    sets = torch.randn(2, 400, 20, 4, generator=generator)
    same = torch.stack([kernel_distance(x, y) for x, y in zip(*sets, strict=True)])
    moved = torch.stack([kernel_distance(x, y + 1) for x, y in zip(*sets, strict=True)])
    assert abs(float(same.mean())) < 4 * float(same.std()) / 20
    assert float(moved.mean()) > 1


def test_subsets_are_seeded_and_spread_less_when_larger() -> None:
    x, y = cloud(300, 6, seed=11), cloud(300, 6, seed=12)
    small, large = (kernel_subsets(x, y, subsets=30, size=size) for size in (20, 150))
    assert small == kernel_subsets(x, y, subsets=30, size=20) and small != kernel_subsets(
        x, y, subsets=30, size=20, seed=1
    )
    assert large.sd < small.sd
    whole = kernel_subsets(x, y, subsets=3, size=1000)
    assert whole.size == 300 and float(whole.mean) == pytest.approx(float(kernel_distance(x, y)), rel=1e-9)
