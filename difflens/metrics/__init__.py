"""What the images are scored with: pure functions in `functional`, metrics over them, judges and feature extractors.

**A metric of your own** is a `torchmetrics.Metric` in a package that `DIFFLENS_ALLOW_TARGETS` names, and an entry of a file
that begins with `defaults: [default, _self_]` in your `conf/metric/`:

    measures:
      brightness: {_target_: mine.Brightness, label: brightness, digits: 2, better: 0, meaning: mean of all pixels}

Its constructor gets what else the entry has. `update` is called for some images at a time, of the same N in all of them, and
gets those of the following that its signature names:

    images         [N, 3, H, W], floats in [0, 1]
    originals      the same ids without mitigation, like `images`
    probabilities  attribute → the scoring judge's softmax [N, C]; a row of NaN where it found no face
    features       of the extractor [N, dim]
    embeddings     of the extractor [N, embed]
    prompts        the prompt of each image
    edited         which images the mitigation acted on [N]

`compute` gives one number. A set of images that lacks what an argument without a default asks for (the unmitigated images
have no `originals`, models without prompts no `prompts`) has none. The number stands under the entry's key in `metrics.json`,
and in all reports, tables and plots with what the entry says of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from difflens.judges.protocol import FeatureExtractor, Judge, ReferenceStatistics, select_classes
    from difflens.metrics.clip import ClipSimilarity, PromptSimilarity, SimilarityResult
    from difflens.metrics.fairness import FairnessDiscrepancy, FairnessResult, Share
    from difflens.metrics.frechet import FrechetDistance, FrechetResult, KernelDistance, KernelResult
    from difflens.metrics.leakage import AttributeLeakage, Leakage, LeakageResult
    from difflens.metrics.pixels import PixelChange

__all__ = [
    "AttributeLeakage",
    "ClipSimilarity",
    "FairnessDiscrepancy",
    "FairnessResult",
    "FeatureExtractor",
    "FrechetDistance",
    "FrechetResult",
    "Judge",
    "KernelDistance",
    "KernelResult",
    "Leakage",
    "LeakageResult",
    "PixelChange",
    "PromptSimilarity",
    "ReferenceStatistics",
    "Share",
    "SimilarityResult",
    "select_classes",
]

MODULES = (
    "metrics.clip",
    "metrics.fairness",
    "metrics.frechet",
    "judges.protocol",
    "metrics.leakage",
    "metrics.pixels",
)


def __getattr__(name: str) -> Any:
    """A name of `__all__`, imported when it is asked for: torchmetrics alone takes 100 MB, beside a network too much."""
    if name in __all__:
        for module in map(import_module, (f"difflens.{module}" for module in MODULES)):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
