"""Distances between two clouds of features: Fréchet distance and kernel distance, in float64."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor


class Moments(NamedTuple):
    """Mean [dim] and unbiased covariance [dim, dim], float64."""

    mean: Float[Tensor, "dim"]
    covariance: Float[Tensor, "dim dim"]


class KernelSubsets(NamedTuple):
    """Mean and standard deviation (divisor `subsets`) of the kernel distance over random subsets of one size."""

    mean: Float[Tensor, ""]
    sd: Float[Tensor, ""]
    size: int


def mean_and_covariance(features: Num[Tensor, "images dim"]) -> Moments:
    """Mean and unbiased covariance of the rows.

    Raises:
        ValueError: there are fewer than two rows.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"a covariance needs at least two rows of features, got {list(features.shape)}.")
    x = features.double()
    # Centred before the product: E[xxᵀ] - E[x]E[x]ᵀ cancels the digits of features far from the origin.
    centred = x - x.mean(0)
    return Moments(x.mean(0), centred.mT @ centred / (len(x) - 1))


def frechet_distance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
    """‖μ_a−μ_b‖² + tr(Σ_a + Σ_b − 2(Σ_a Σ_b)^½) of two (mean, covariance) pairs (Dowson & Landau, 1982).

    The root's trace is that of (R Σ_b Rᵀ)^½, with Σ_a = Rᵀ R from `eigh`: symmetric, so `eigvalsh` suffices. Directions
    in which `a` has no variance are cut away first, because the root turns their rounding error ε into √ε each; so
    give the smaller sample (n < dim) as `a`.

    Raises:
        ValueError: the shapes do not agree, or a value is not finite.
    """
    (mean_a, covariance_a), (mean_b, covariance_b) = a, b
    if mean_a.shape != mean_b.shape or covariance_a.shape != covariance_b.shape:
        raise ValueError(f"features of dimensions {len(mean_a)} and {len(mean_b)} cannot be compared.")
    if not all(bool(x.isfinite().all()) for x in (*a, *b)):
        raise ValueError("features with NaN or infinite values have no Fréchet distance; check the generated images.")
    # Not the root of the product Σ_a Σ_b itself, which is not symmetric: its eigenvalues take three times as long and
    # may come out complex.
    values, vectors = torch.linalg.eigh(covariance_a.double())
    # The usual bound of a numerical rank: what lies below it is the largest eigenvalue's rounding.
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    root = values[kept].sqrt()[:, None] * vectors[:, kept].mT
    product = root @ covariance_b.double() @ root.mT
    # `eigvalsh` reads one triangle only, so both are averaged first; eigenvalues below 0 are rounding.
    overlap: Tensor = torch.linalg.eigvalsh((product + product.mT) / 2).clamp(min=0).sqrt().sum()
    shift = (mean_a.double() - mean_b.double()).square().sum()
    spread = covariance_a.double().trace() + covariance_b.double().trace()
    return shift + spread - 2 * overlap


def kernel_distance(
    x: Num[Tensor, "images dim"], y: Num[Tensor, "others dim"], *, block: int = 1024
) -> Float[Tensor, ""]:
    """KID: the unbiased MMD² with kernel (x·y/dim + 1)³ over all samples (Bińkowski et al., 2018, eq. 4).

    Args:
        x: features [n, dim], n ≥ 2.
        y: features [m, dim], m ≥ 2.
        block: rows and columns of a Gram block, which alone is in float64: beside the features memory does not grow.

    Raises:
        ValueError: fewer than two rows, or different dimensions.
    """
    if min(len(x), len(y)) < 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(f"KID needs two sets of ≥ 2 features [n, dim], got {list(x.shape)} and {list(y.shape)}.")
    return _within(x, block) + _within(y, block) - 2 * _total(x, y, block) / (len(x) * len(y))


def kernel_subsets(
    x: Num[Tensor, "images dim"], y: Num[Tensor, "others dim"], *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> KernelSubsets:
    """KID over seeded random subsets, drawn without replacement from each set; `size` is cut to the smaller set.

    The spread describes subsets of that size, not the error of the KID over all samples.

    Raises:
        ValueError: there is no subset, or its size is below two.
    """
    size = min(size, len(x), len(y))
    if subsets < 1 or size < 2:
        raise ValueError(f"KID needs at least one subset of two or more images, got {subsets} of {size}.")
    # On the CPU wherever the features lie: the same subsets on every device.
    generator = torch.Generator().manual_seed(seed)
    pairs = ((_draw(x, size, generator), _draw(y, size, generator)) for _ in range(subsets))
    values = torch.stack([kernel_distance(a, b) for a, b in pairs])
    # The divisor of torchmetrics and torch-fidelity, so that spreads can be compared with theirs.
    return KernelSubsets(values.mean(), values.std(correction=0), size)


def _draw(features: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return features[torch.randperm(len(features), generator=generator)[:size].to(features.device)]


def _total(x: Tensor, y: Tensor, block: int) -> Tensor:
    # Block by block: of 10,000 images the whole Gram matrix takes 800 MB in double precision.
    parts = [_kernel(rows.double(), columns.double()).sum() for rows in x.split(block) for columns in y.split(block)]
    return torch.stack(parts).sum()


def _within(x: Tensor, block: int) -> Tensor:
    # k(x, x) = (|x|²/dim + 1)³ of an image with itself is taken out again: it would bias the mean upwards.
    lengths = torch.cat([rows.double().square().sum(1) for rows in x.split(block)])
    diagonal = (lengths / x.shape[1] + 1).pow(3).sum()
    return (_total(x, x, block) - diagonal) / (len(x) * (len(x) - 1))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT / x.shape[1] + 1).pow(3)
