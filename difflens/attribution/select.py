"""From scores to features: the top latents of each class, kept apart from what drives other attributes."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from difflens.types import Attribute, FeatureScores, FeatureSet


def contrast(scores: Float[Tensor, "classes latents"]) -> Float[Tensor, "classes latents"]:
    """Each class's score beyond the mean of the other classes': what drives every class alike cancels."""
    classes = len(scores)
    return (scores * classes - scores.sum(0)) / (classes - 1)


def select_features(
    scores: FeatureScores,
    *,
    top: int | Mapping[str, int],
    others: Sequence[FeatureScores] = (),
    specificity: float = 0.0,
) -> FeatureSet:
    """The latents with the largest contrast of each class (METHOD section 4), at most `top`, never one that scores ≤ 0.

    Args:
        scores: of the attribute under study.
        top: latents per class, one number or one per class name.
        others: scores of other attributes.
        specificity: how much a latent's largest share of any other attribute's drive counts against it; both are
            measured as shares of their attribute's strongest latent, so that the scales agree.

    Raises:
        ValueError: `top` names an unknown class, lacks one, exceeds the width, or no latent is left for any class.
    """
    counts = _counts(top, scores.attribute, scores.scores.shape[-1])
    own = _relative(contrast(scores.total()))
    worst = torch.zeros(own.shape[-1])
    for other in others:
        worst = torch.maximum(worst, _relative(contrast(other.total())).abs().amax(0))
    penalised = own - specificity * worst
    latents = {}
    for index, name in enumerate(scores.attribute.classes):
        order = penalised[index].argsort(descending=True)[: counts[name]]
        latents[name] = tuple(int(i) for i in order if penalised[index, i] > 0)
    if not any(latents.values()):
        raise ValueError(
            f"no latent drives {scores.attribute.name!r} more than other attributes; "
            f"lower attribution.specificity ({specificity}) or raise sae.expansion."
        )
    return FeatureSet(scores.attribute, latents)


def _relative(scores: Tensor) -> Tensor:
    return scores / scores.abs().amax().clamp_min(1e-12)


def _counts(top: int | Mapping[str, int], attribute: Attribute, width: int) -> dict[str, int]:
    counts = {name: top for name in attribute.classes} if isinstance(top, int) else dict(top)
    for name in counts:
        attribute.index(name)
    if set(counts) != set(attribute.classes):
        raise ValueError(f"attribution.top must name each of {list(attribute.classes)}, got {list(counts)}.")
    if max(counts.values()) > width or min(counts.values()) < 0:
        raise ValueError(f"attribution.top must be 0 to {width} (the SAE's width), got {counts}.")
    return counts
