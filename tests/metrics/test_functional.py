"""Closed forms of the fairness, similarity and leakage measures; distances against independent implementations."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scipy.linalg import sqrtm
from torch import Tensor
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from difflens.metrics import functional
from difflens.metrics.fairness import FairnessDiscrepancy
from difflens.metrics.functional import (
    frechet_distance,
    kernel_distance,
    kernel_subsets,
    mean_and_covariance,
    official_discrepancies,
)


def uniform(classes: int) -> torch.Tensor:
    return torch.ones(classes).double() / classes


def measured(probabilities: torch.Tensor, target: torch.Tensor | None = None) -> tuple[float, float]:
    """Soft and hard FD of a judge's probabilities."""
    metric = FairnessDiscrepancy([str(i) for i in range(probabilities.shape[1])], target)
    metric.update(probabilities, probabilities=True)
    return metric.compute().fd, metric.compute().fd_hard


@pytest.mark.parametrize(("classes", "maximum"), [(2, 0.7071), (3, 0.8165), (4, 0.8660)])
def test_one_class_only_gives_the_maximum_and_perfect_balance_zero(classes: int, maximum: float) -> None:
    assert measured(torch.eye(classes)[:1].repeat(9, 1)) == pytest.approx((maximum, maximum), abs=5e-5)
    assert max(measured(torch.eye(classes).repeat(7, 1))) < 1e-15
    assert float(functional.maximum_discrepancy(uniform(classes))) == pytest.approx(
        math.sqrt(1 - 1 / classes), abs=1e-15
    )


def test_soft_and_hard_differ_where_the_judge_hesitates() -> None:
    p = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.2, 0.8], [0.6, 0.4]], dtype=torch.float64)
    assert measured(p) == pytest.approx((0.0, 0.25 * math.sqrt(2)), abs=1e-15)


def test_a_skewed_target_is_met_by_its_own_shares_and_farthest_from_its_rarest_class() -> None:
    assert float(functional.maximum_discrepancy(torch.tensor([0.75, 0.25]))) == pytest.approx(0.75 * math.sqrt(2))
    p = torch.eye(2)[torch.tensor([0, 0, 0, 1])]
    assert measured(p, torch.tensor([0.75, 0.25]))[1] == 0
    assert measured(p, torch.tensor([0.25, 0.75]))[1] == pytest.approx(0.5 * math.sqrt(2))


@pytest.mark.parametrize("target", [[0.5, 0.6], [-0.1, 1.1], [1.0], [math.nan, 1.0]])
def test_a_target_must_be_a_distribution(target: list[float]) -> None:
    with pytest.raises(ValueError, match="summing to 1"):
        functional.valid_target(torch.tensor(target))


@pytest.mark.parametrize("n", [1, 2, 7, 50])
@pytest.mark.parametrize("q", [0.5, 0.3, 1 / 3, 1.0])
def test_two_class_chance_level_is_the_binomial_sum(n: int, q: float) -> None:
    direct = sum(
        math.comb(n, k) * q**k * (1 - q) ** (n - k) * math.hypot(k / n - q, (n - k) / n - (1 - q)) for k in range(n + 1)
    )
    assert float(functional.chance_discrepancy(n, torch.tensor([q, 1 - q], dtype=torch.float64))) == pytest.approx(
        direct, rel=1e-11, abs=1e-15
    )


@pytest.mark.parametrize("n", [1_000, 100_000])
def test_two_class_chance_level_tends_to_its_limit(n: int) -> None:
    assert float(functional.chance_discrepancy(n, uniform(2))) * math.sqrt(n) == pytest.approx(0.564, abs=5e-4)


def test_chance_level_of_four_classes_is_the_chi_mean() -> None:
    # For large n, √n (p − q) is Gaussian with covariance (I − 11ᵀ/4)/4: a chi variable of 3 degrees, halved.
    expected = math.sqrt(2) * math.gamma(2) / math.gamma(1.5) / 2 / math.sqrt(10_000)
    assert float(functional.chance_discrepancy(10_000, uniform(4))) == pytest.approx(expected, rel=0.01)
    assert float(functional.chance_discrepancy(99, uniform(4))) == float(functional.chance_discrepancy(99, uniform(4)))
    assert float(functional.chance_discrepancy(1, uniform(3))) == pytest.approx(math.sqrt(2 / 3)), "the maximum"


def test_unbiased_square_has_the_true_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    n, trials, q = 20, 400, uniform(3)
    for p in (q, torch.tensor([0.6, 0.3, 0.1]).double()):
        labels = torch.multinomial(p, n * trials, replacement=True, generator=generator).view(trials, n)
        shares = torch.nn.functional.one_hot(labels, 3).double().mean(1)
        squares = torch.stack([functional.unbiased_squared_discrepancy(row, q, n=n) for row in shares])
        error = 4 * float(squares.std()) / math.sqrt(len(squares))
        assert float(squares.mean()) == pytest.approx(float((p - q).square().sum()), abs=error)
        assert float((shares - q).square().sum(-1).mean()) > float((p - q).square().sum()) + error
    assert math.isnan(float(functional.unbiased_squared_discrepancy(torch.tensor([1.0, 0.0]), uniform(2), n=1)))


def test_wilson_interval_has_its_published_values() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
    for count, n, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)]:
        interval = functional.wilson_interval(torch.tensor([count]), n)
        assert float(interval.low) == pytest.approx(low, abs=5e-5)
        assert float(interval.high) == pytest.approx(high, abs=5e-5)


def test_wilson_interval_covers_everything_of_a_full_class() -> None:
    interval = functional.wilson_interval(torch.tensor([29, 0]), 29)
    assert float(interval.high[0]) == 1 and float(interval.low[0]) == pytest.approx(0.8830, abs=5e-5)
    narrow, wide = (functional.wilson_interval(torch.tensor([29, 0]), 29, confidence=c).low[0] for c in (0.8, 0.99))
    assert wide < interval.low[0] < narrow


def test_product_classes_enumerate_rows_first() -> None:
    p = [torch.tensor([[0.9, 0.1]]), torch.tensor([[0.2, 0.3, 0.5]])]
    assert torch.allclose(
        functional.product_probabilities(p), torch.tensor([[0.18, 0.27, 0.45, 0.02, 0.03, 0.05]]).double()
    )


def test_cosines_and_the_papers_scale() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    b = torch.tensor([[3.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    cosine = functional.paired_cosine(a, b)
    assert torch.allclose(cosine, torch.tensor([1.0, math.sqrt(0.5), -1.0]).double(), atol=1e-15)
    assert functional.paper_scale(cosine)[[0, 2]].tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="zero"):
        functional.paired_cosine(a, torch.zeros_like(a))


def test_flips_shift_and_editing_precision() -> None:
    before, after = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 0, 1, 0])
    assert float(functional.flip_rate(before, after)) == 0.5
    assert functional.share_shift(before, after, classes=2).tolist() == [0, 0]
    assert functional.share_shift(before, torch.ones(4).long(), classes=2).tolist() == [-0.5, 0.5]
    target, other = torch.tensor([[2.0, -2.0], [0.0, 0.0]]), torch.tensor([[0.5, 0.0, -0.25], [0.0, 0.0, 0.0]])
    assert float(functional.editing_precision(target, other)) == pytest.approx(8.0)


def test_shares_are_corrected_by_the_judges_recalls() -> None:
    recalls = torch.tensor([0.9, 0.7])
    seen = torch.tensor([0.9 * 0.4 + 0.3 * 0.6, 0.1 * 0.4 + 0.7 * 0.6])
    assert functional.corrected_shares(seen, recalls).tolist() == pytest.approx([0.4, 0.6])
    three = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    confusion = torch.tensor([[0.8, 0.05, 0.2], [0.1, 0.9, 0.2], [0.1, 0.05, 0.6]], dtype=torch.float64)
    found = functional.corrected_shares(confusion @ three, torch.tensor([0.8, 0.9, 0.6]))
    assert found.tolist() == pytest.approx([0.2, 0.5, 0.3])


def test_corrected_shares_stay_shares_and_need_a_judge_better_than_chance() -> None:
    assert functional.corrected_shares(torch.tensor([1.0, 0.0]), torch.tensor([0.9, 0.9])).tolist() == [1, 0]
    with pytest.raises(ValueError, match="chance"):
        functional.corrected_shares(torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.9]))


def test_official_discrepancies_equal_the_released_code() -> None:
    oracle = load_file(Path(__file__).parents[1] / "fixtures" / "official_fairness.safetensors")
    found = torch.tensor(official_discrepancies(oracle["fairface_logits"]), dtype=torch.float64)
    assert torch.allclose(found, oracle["fd_official_gender_age_race"], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="18"):
        official_discrepancies(torch.zeros(4, 7))


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


def test_subsets_are_seeded_and_spread_less_when_larger() -> None:
    x, y = cloud(300, 6, seed=11), cloud(300, 6, seed=12)
    small, large = (kernel_subsets(x, y, subsets=30, size=size) for size in (20, 150))
    assert small == kernel_subsets(x, y, subsets=30, size=20) and small != kernel_subsets(
        x, y, subsets=30, size=20, seed=1
    )
    assert large.sd < small.sd
    whole = kernel_subsets(x, y, subsets=3, size=1000)
    assert whole.size == 300 and float(whole.mean) == pytest.approx(float(kernel_distance(x, y)), rel=1e-9)
