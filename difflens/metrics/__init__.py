"""What the images are scored with: pure functions in `functional`, metrics over them, judges and feature extractors."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from difflens.judges.protocol import FeatureExtractor, Judge, ReferenceStatistics, select_classes
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

MODULES = ("metrics.clip", "metrics.fairness", "metrics.frechet", "judges.protocol", "metrics.leakage")


def __getattr__(name: str) -> Any:
    """A name of `__all__`, imported when it is asked for: torchmetrics alone takes 100 MB, beside a network too much."""
    if name in __all__:
        for module in map(import_module, (f"difflens.{module}" for module in MODULES)):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
