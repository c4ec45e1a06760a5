"""FID and KID as metrics over features of a named extractor."""

from typing import NamedTuple

import torch
from jaxtyping import Int, Num
from torch import Tensor

from difflens.judges.protocol import ReferenceStatistics
from difflens.metrics.functional import frechet_distance, kernel_distance, kernel_subsets
from difflens.metrics.sums import RowMetric, SumMetric


class FrechetResult(NamedTuple):
    """Fréchet distance of n images, with all that makes the number comparable."""

    distance: float
    n: int
    extractor: str
    resize: str
    reference_n: int
    reference_sha256: str


class KernelResult(NamedTuple):
    """Kernel distance over all samples, and its mean and sd over random subsets."""

    distance: float
    subset_mean: float
    subset_sd: float
    subset_size: int
    n: int
    reference_n: int


class FrechetDistance(SumMetric):
    """Fréchet distance between the images' features and reference statistics: 0 of equal ones, lower is better.

    >>> real = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    >>> reference = ReferenceStatistics.from_features(real, extractor="pixels", resize="none")
    >>> metric = FrechetDistance(3, reference)
    >>> metric.update(real + 2)  # moved by 2 in each of 3 directions
    >>> round(metric.compute().distance, 3)
    12.0

    Args:
        dim: the extractor's feature dimension.
        reference: statistics made by the same extractor.

    Raises:
        ValueError: the reference has another dimension.
    """

    frechet_sum: Tensor
    frechet_products: Tensor
    frechet_n: Tensor
    origin: Tensor

    def __init__(self, dim: int, reference: ReferenceStatistics) -> None:
        super().__init__()
        if len(reference.mean) != dim:
            raise ValueError(
                f"features of {dim} dimensions were to be compared with {len(reference.mean)} of a reference."
            )
        self.reference = reference
        # Sums are taken about the reference mean, so that no digits cancel in the covariance.
        self.register_buffer("origin", reference.mean.clone(), persistent=False)
        self.add_sum("frechet_sum", dim)
        self.add_sum("frechet_products", dim, dim)
        self.add_sum("frechet_n", dtype=torch.int64)

    def update(self, features: Num[Tensor, "images dim"]) -> None:
        """Adds features [N, dim]."""
        centred = _features(features, len(self.origin)).to(self.origin) - self.origin
        self.frechet_sum = self.frechet_sum + centred.sum(0)
        self.frechet_products = self.frechet_products + centred.mT @ centred
        self.frechet_n = self.frechet_n + len(features)

    def compute(self) -> FrechetResult:
        """The distance; with n ≤ dim it is finite but strongly biased upwards.

        Raises:
            ValueError: fewer than two images came, or a feature is not finite.
        """
        n, reference = int(self.frechet_n), self.reference
        if n < 2:
            raise ValueError(f"a Fréchet distance needs at least two images, got {n}.")
        shift = self.frechet_sum / n
        # Σ(x-o)(x-o)ᵀ - n s sᵀ with s the mean seen from the origin o: small, so that little cancels.
        covariance = (self.frechet_products - n * torch.outer(shift, shift)) / (n - 1)
        made = (reference.mean.to(self.origin), reference.covariance.to(self.origin))
        # The images first: they may be fewer than the dimensions, and what is empty in the first argument is cut away.
        distance = frechet_distance((self.origin + shift, covariance), made)
        return FrechetResult(float(distance), n, reference.extractor, reference.resize, reference.n, reference.sha256)


class KernelDistance(RowMetric):
    """Kernel distance between the images' features and reference features: about 0 of equal distributions, lower is better.

    >>> real = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    >>> metric = KernelDistance(real, torch.arange(50), subset_size=25)
    >>> metric.update(real + 2, torch.arange(50))
    >>> metric.compute().distance > 10
    True

    The features are kept, in a state of fixed size [images, dim] with one row per id and the reference's number format
    (10,000 × 2048 in float32: 82 MB per rank), so that subsets do not depend on batches or ranks.

    Args:
        reference: reference features [m, dim].
        image_ids: ids of the images to come [n].
        subsets: number of random subsets.
        subset_size: images per subset, cut to the smaller set.
        seed: seed of the subsets.
    """

    kernel_features: Tensor
    reference: Tensor

    def __init__(
        self,
        reference: Num[Tensor, "others dim"],
        image_ids: Int[Tensor, "images"],
        *,
        subsets: int = 100,
        subset_size: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(image_ids, name="kernel")
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed
        # In its own number format: 10,000 × 2048 take 164 MB in double precision, which is needed block by block only.
        self.register_buffer("reference", reference, persistent=False)
        # Of fixed shape and filled in by row: torchmetrics' lists of batches abort where a rank has no images.
        self.add_sum("kernel_features", len(image_ids), reference.shape[1], dtype=reference.dtype)

    def update(self, features: Num[Tensor, "images dim"], image_ids: Int[Tensor, "images"]) -> None:
        """Adds features [N, dim] of the images with these ids [N]."""
        values = _features(features, self.reference.shape[1]).to(self.reference)
        rows = self.take_rows(image_ids, values)
        self.kernel_features = self.kernel_features.index_add(0, rows, values)

    def compute(self) -> KernelResult:
        """KID over all samples and over subsets (ValueError: an expected image did not come exactly once)."""
        n = self.require_all_rows()
        # By id, so that the seeded subsets hold the same images in whatever order these came.
        ordered = self.kernel_features[self.image_ids.argsort()]
        part = kernel_subsets(ordered, self.reference, subsets=self.subsets, size=self.subset_size, seed=self.seed)
        distance = float(kernel_distance(ordered, self.reference))
        return KernelResult(distance, float(part.mean), float(part.sd), part.size, n, len(self.reference))


def _features(features: Tensor, dim: int) -> Tensor:
    if features.ndim != 2 or features.shape[1] != dim:
        raise ValueError(f"features must be [N, {dim}] like the reference, got {list(features.shape)}.")
    return features
