"""What the images are scored with: pure functions in `functional`, metrics over them, judges and feature extractors."""

from difflens.metrics.clip import ClipSimilarity, PromptSimilarity, SimilarityResult
from difflens.metrics.fairness import (
    FairnessDiscrepancy,
    FairnessResult,
    IntersectionalFairnessDiscrepancy,
    PerPromptFairnessDiscrepancy,
    PerPromptFairnessResult,
    Share,
)
from difflens.metrics.frechet import FrechetDistance, FrechetResult, KernelDistance, KernelResult
from difflens.metrics.judges import FeatureExtractor, Judge, ReferenceStatistics, select_classes
from difflens.metrics.leakage import AttributeLeakage, Leakage, LeakageResult

__all__ = [
    "AttributeLeakage",
    "ClipSimilarity",
    "FairnessDiscrepancy",
    "FairnessResult",
    "FeatureExtractor",
    "FrechetDistance",
    "FrechetResult",
    "IntersectionalFairnessDiscrepancy",
    "Judge",
    "KernelDistance",
    "KernelResult",
    "Leakage",
    "LeakageResult",
    "PerPromptFairnessDiscrepancy",
    "PerPromptFairnessResult",
    "PromptSimilarity",
    "ReferenceStatistics",
    "Share",
    "SimilarityResult",
    "select_classes",
]
