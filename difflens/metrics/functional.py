"""Fairness, similarity, leakage and distances of feature clouds as pure functions in float64 (METHOD section 7)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor


class Interval(NamedTuple):
    """Lower and upper ends, float64 [classes]."""

    low: Float[Tensor, "classes"]
    high: Float[Tensor, "classes"]


def valid_target(target: Num[Tensor, "classes"]) -> Float[Tensor, "classes"]:
    """The target distribution q in float64, normalised to sum to 1 exactly.

    Raises:
        ValueError: it is not a vector of at least two finite, non-negative shares that sum to 1 within 1e-6.
    """
    q = target.double()
    # `not … <=` in place of `>`: comparisons with NaN are false, so that NaN is refused too.
    if q.ndim != 1 or len(q) < 2 or not bool((q >= 0).all()) or not abs(float(q.sum()) - 1) <= 1e-6:
        raise ValueError(f"a target needs two or more shares, non-negative and summing to 1, got {target.tolist()}.")
    return q / q.sum()


def discrepancy(shares: Num[Tensor, "classes"], target: Num[Tensor, "classes"]) -> Float[Tensor, ""]:
    """‖p − q‖₂ of two distributions over the same classes.

    Raises:
        ValueError: the two have different numbers of classes, or the target is no distribution.
    """
    if shares.shape != target.shape:
        raise ValueError(f"shares of {list(shares.shape)} classes were compared with a target of {list(target.shape)}.")
    return _norm(shares.double() - valid_target(target))


def unbiased_squared_discrepancy(
    shares: Num[Tensor, "classes"], target: Num[Tensor, "classes"], *, n: int
) -> Float[Tensor, ""]:
    """Σ(p−q)² − Σp(1−p)/(n−1) for the hard shares p of n images; its mean is ‖E p − q‖², 0 for a fair sampler.

    It may be negative, and is NaN for n = 1.
    """
    p = shares.double()
    # E‖p̂ - q‖² = ‖p - q‖² + Σ p(1 - p)/n, and p̂(1 - p̂)/(n - 1) estimates that last term without bias.
    noise = (p * (1 - p)).sum() / (n - 1) if n > 1 else p.new_tensor(math.nan)
    return discrepancy(p, target) ** 2 - noise


def maximum_discrepancy(target: Num[Tensor, "classes"]) -> Float[Tensor, ""]:
    """The largest possible FD: every image of the class farthest from q; √(1 − 1/C) for a uniform q."""
    q = valid_target(target)
    return _norm(torch.eye(len(q), dtype=q.dtype, device=q.device) - q).amax()


def chance_discrepancy(
    n: int, target: Num[Tensor, "classes"], *, draws: int = 20_000, seed: int = 0
) -> Float[Tensor, ""]:
    """Expected hard FD of n independent images drawn from q itself.

    Exact for two classes (de Moivre's mean absolute deviation of a binomial; → 0.564/√n for a uniform q). For more
    classes the mean over `draws` seeded multinomial samples, whose relative standard error is about 0.5/√draws.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"a chance level needs at least one image, got n={n}.")
    q = valid_target(target).cpu()
    # Both classes are off by the same amount, so FD is √2 times one of them.
    if len(q) == 2:
        return torch.tensor(math.sqrt(2) * _binomial_deviation(n, float(q[0])) / n, dtype=torch.float64)
    # Seeded and by its own generator: the same table always has the same chance level.
    counts = np.random.default_rng(seed).multinomial(n, q.numpy(), size=draws)
    return _norm(torch.from_numpy(counts).double() / n - q).mean()


def _binomial_deviation(n: int, q: float) -> float:
    """E|K − nq| for K ~ Binomial(n, q), by 2v·C(n,v)·q^v·(1−q)^(n−v+1) with v = ⌊nq⌋ + 1 (de Moivre, 1730)."""
    v = math.floor(n * q) + 1
    # At q = 0 or q = 1 every image is of one class.
    if q == 0 or v > n:
        return 0.0
    # In logarithms: from about n = 1,000 on, C(n, v) is larger than any float.
    log_choose = math.lgamma(n + 1) - math.lgamma(v + 1) - math.lgamma(n - v + 1)
    return 2 * v * math.exp(log_choose + v * math.log(q) + (n - v + 1) * math.log1p(-q))


def wilson_interval(counts: Num[Tensor, "classes"], n: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of each share counts/n (Wilson, 1927); counts of cases of several images need not be whole.

    Raises:
        ValueError: n is below 1, or the confidence is not between 0 and 1.
    """
    if n < 1 or not 0 < confidence < 1:
        raise ValueError(f"an interval needs n ≥ 1 and 0 < confidence < 1, got n={n}, confidence={confidence}.")
    z = float(torch.special.ndtri(torch.tensor((1 + confidence) / 2, dtype=torch.float64)))
    # Wilson's and not Wald's ± z·√(p(1-p)/n), which has no width at 0 and 1, where successful edits end.
    p = counts.double() / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)).sqrt()
    return Interval((centre - half).clamp(min=0), (centre + half).clamp(max=1))


def share_measures(shares: Num[Tensor, "classes"], target: Num[Tensor, "classes"]) -> dict[str, float]:
    """The literature's other numbers that the same hard shares p give, against a target q.

    Returns:
        `deviation_ratio`: max |p − q| over its largest possible value (1 − 1/C for a uniform q; Self-discovering, Li et al.
        2024). `entropy`: H(p)/log C. `l1`: Σ|p − q|. `kl`: Σ p log(p/q) in nats, infinite where q lacks a class of p.
    """
    p, q = shares.double(), valid_target(target)
    worst = torch.maximum(1 - q, q).max()
    # `entr` and `xlogy` take 0·log 0 as 0, where the formula written out gives NaN for a class without images.
    return {
        "deviation_ratio": float((p - q).abs().max() / worst),
        "entropy": float(torch.special.entr(p).sum() / math.log(len(p))),
        "l1": float((p - q).abs().sum()),
        "kl": float((torch.xlogy(p, p) - torch.xlogy(p, q)).sum()),
    }


def corrected_shares(shares: Num[Tensor, "classes"], recalls: Num[Tensor, "classes"]) -> Float[Tensor, "classes"]:
    """The shares that images truly have where a judge of known recalls reads these (CLEAM, Teo et al., NeurIPS 2023).

    A recall is the share of the images of a class that the judge reads as that class. Its answers are A p of the true
    shares p, A having the recalls on its diagonal and each class's errors spread evenly over the others; p is clipped to
    be non-negative and to sum to 1.

    Raises:
        ValueError: a recall is no better than chance, so that the shares cannot be told.
    """
    p, right = shares.double(), recalls.double()
    classes = len(p)
    # At chance all columns of A are equal: it has no inverse, and any shares would explain the answers.
    if not bool(((right > 1 / classes) & (right <= 1)).all()):
        raise ValueError(f"recalls must lie above chance (1/{classes}) and not above 1, got {recalls.tolist()}.")
    # Column j is how images of class j are read.
    confusion = ((1 - right) / (classes - 1)).expand(classes, classes).clone()
    confusion.diagonal().copy_(right)
    # A share that chance made too small may be solved to less than none.
    true = torch.linalg.solve(confusion, p).clamp_min(0)
    return true / true.sum()


def unrelated_cosine(embeddings: Num[Tensor, "images dim"]) -> Float[Tensor, ""]:
    """The mean cosine of all pairs of different images: what CLIP-I gives for images that have nothing in common."""
    # ‖Σ u_i‖² = n + Σ_{i≠j} u_i·u_j gives all pairs without n² cosines.
    unit = torch.nn.functional.normalize(embeddings.double(), dim=-1)
    n = len(unit)
    return (unit.sum(0).square().sum() - n) / max(1, n * (n - 1))


def product_probabilities(probabilities: Sequence[Float[Tensor, "rows _"]]) -> Float[Tensor, "rows products"]:
    """Product-class probabilities per row, the attributes taken as independent given the row; the last varies fastest.

    With one row per attribute it also turns marginal targets into a product target.
    """
    joint = probabilities[0].double()
    for factor in probabilities[1:]:
        joint = (joint.unsqueeze(-1) * factor.double().unsqueeze(-2)).flatten(1)
    return joint


def paired_cosine(a: Num[Tensor, "pairs dim"], b: Num[Tensor, "pairs dim"]) -> Float[Tensor, "pairs"]:
    """Cosine of row i of `a` with row i of `b`.

    Raises:
        ValueError: the shapes differ, or an embedding is zero or not finite.
    """
    if a.shape != b.shape:
        raise ValueError(f"paired embeddings must have one shape, got {list(a.shape)} and {list(b.shape)}.")
    # torch's own cosine calls that of a zero vector 0, which would hide a broken image.
    lengths = _norm(torch.stack([a.double(), b.double()]))
    if not bool((lengths.isfinite() & (lengths > 0)).all()):
        raise ValueError("an embedding is zero or not finite and has no cosine; check the images of this batch.")
    return (a.double() * b.double()).sum(-1) / lengths.prod(0)


def paper_scale(cosine: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """(cos + 1)/2, the scale on which the paper prints CLIP-I and CLIP-T."""
    return (cosine.double() + 1) / 2


def flip_rate(before: Int[Tensor, "images"], after: Int[Tensor, "images"]) -> Float[Tensor, ""]:
    """Share of images whose label changed; NaN without images."""
    return (before != after).double().mean()


def share_shift(
    before: Int[Tensor, "images"], after: Int[Tensor, "images"], *, classes: int
) -> Float[Tensor, "classes"]:
    """Share after minus share before, per class; sums to 0."""
    new, old = (torch.nn.functional.one_hot(labels.long(), classes).double().mean(0) for labels in (after, before))
    return new - old


def editing_precision(
    target_change: Float[Tensor, "images target"], other_change: Float[Tensor, "images others"]
) -> Float[Tensor, ""]:
    """Mean |Δ target logit| / mean |Δ other logits|: inf if only the target moved, NaN if nothing did."""
    return target_change.double().abs().mean() / other_change.double().abs().mean()


def _norm(vectors: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape"]:
    return vectors.square().sum(-1).sqrt()


OUTPUTS = 18
"""FairFace outputs: 0:7 race, 7:9 gender, 9:18 age (0-2, 3-9, 10-19, 20-29, … 70+)."""


class OfficialDiscrepancies(NamedTuple):
    """Soft FD per attribute against a uniform target."""

    gender: float
    age: float
    race: float


def official_discrepancies(logits: Float[Tensor, "images outputs"]) -> OfficialDiscrepancies:
    """Soft FD of gender, age (young 0-19, adult 20-59, old 60+) and race under `protocol: official`.

    Each attribute's softmax runs over its own outputs. Race keeps the first four of seven probabilities (White, Black,
    Latino, East Asian) without renormalising them and compares each with 0.25, so that it is not zero for any sampler
    that the judge sometimes places in another race.

    Raises:
        ValueError: the logits are not [N, 18] with N ≥ 1.
    """
    if logits.ndim != 2 or logits.shape[1] != OUTPUTS or len(logits) == 0:
        raise ValueError(f"the official protocol reads FairFace logits [N, {OUTPUTS}], got {list(logits.shape)}.")
    # As released, faults included: these numbers stand beside the paper's and nowhere else.
    race, gender, age = (part.double().softmax(-1).mean(0) for part in torch.split(logits, [7, 2, 9], dim=1))
    grouped = torch.stack([age[:3].sum(), age[3:7].sum(), age[7:].sum()])
    return OfficialDiscrepancies(*(float(_norm(p - 1 / len(p))) for p in (gender, grouped, race[:4])))


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
    """Mean and unbiased covariance of the rows (ValueError: there are fewer than two rows)."""
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

    A Gram block of `block` rows and columns alone is in float64: beside the features memory does not grow.

    Raises:
        ValueError: fewer than two rows in either, or different dimensions.
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

    def draw(features: Tensor) -> Tensor:
        return features[torch.randperm(len(features), generator=generator)[:size].to(features.device)]

    values = torch.stack([kernel_distance(draw(x), draw(y)) for _ in range(subsets)])
    # The divisor of torchmetrics and torch-fidelity, so that spreads can be compared with theirs.
    return KernelSubsets(values.mean(), values.std(correction=0), size)


def _total(x: Tensor, y: Tensor, block: int) -> Tensor:
    # Block by block: of 10,000 images the whole Gram matrix takes 800 MB in double precision.
    pairs = ((rows.double(), columns.double()) for rows in x.split(block) for columns in y.split(block))
    return torch.stack([(rows @ columns.mT / x.shape[1] + 1).pow(3).sum() for rows, columns in pairs]).sum()


def _within(x: Tensor, block: int) -> Tensor:
    # k(x, x) = (|x|²/dim + 1)³ of an image with itself is taken out again: it would bias the mean upwards.
    lengths = torch.cat([rows.double().square().sum(1) for rows in x.split(block)])
    diagonal = (lengths / x.shape[1] + 1).pow(3).sum()
    return (_total(x, x, block) - diagonal) / (len(x) * (len(x) - 1))
