"""From scores to features: the top latents of each class apart from what drives others, and sets for a causal control."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from difflens.vocabulary import FeatureScores, FeatureSet


def contrast(scores: Float[Tensor, "classes latents"]) -> Float[Tensor, "classes latents"]:
    """Each class's score beyond the mean of the other classes': what drives every class alike cancels."""
    classes = len(scores)
    # s_c − (Σ_k s_k − s_c) / (C − 1), brought to one fraction.
    return (scores * classes - scores.sum(0)) / (classes - 1)


def ranked(scores: Float[Tensor, "classes latents"], rank: str) -> Float[Tensor, "classes latents"]:
    """What latents are ranked by: `contrast` of the scores, or the `plain` scores."""
    return contrast(scores) if rank == "contrast" else scores


def select_features(
    scores: FeatureScores,
    *,
    top: int | Mapping[str, int],
    rank: str = "contrast",
    others: Sequence[FeatureScores] = (),
    specificity: float = 0.0,
) -> FeatureSet:
    """The latents that rank highest for each class (METHOD section 4).

    By `contrast` they are at most `top` (one number, or one per class), never one whose contrast is ≤ 0; `plain` takes
    the `top` largest scores whatever they are, as the released code does, so that one latent may belong to several
    classes. `specificity` is how much a latent's largest share of the drive of any of the `others` counts against it;
    both are shares of their attribute's strongest latent, so that the scales agree.

    Raises:
        ValueError: no latent is left for any class.
    """
    own = _relative(ranked(scores.total(), rank))
    worst = torch.zeros(own.shape[-1])
    for other in others:
        worst = torch.maximum(worst, _relative(ranked(other.total(), rank)).abs().amax(0))
    penalised = own - specificity * worst
    latents = {}
    for index, name in enumerate(scores.attribute.classes):
        order = penalised[index].argsort(descending=True)[: top if isinstance(top, int) else top[name]]
        # A latent whose contrast is 0 or less drives the other classes as much or more: the list may stay short.
        latents[name] = tuple(int(i) for i in order if rank == "plain" or penalised[index, i] > 0)
    if not any(latents.values()):
        raise ValueError(
            f"no latent drives {scores.attribute.name!r} more than other attributes; "
            f"lower attribution.specificity ({specificity}) or raise sae.expansion."
        )
    return FeatureSet(scores.attribute, latents)


def _relative(scores: Tensor) -> Tensor:
    # Scores that are all zero stay zero, not NaN.
    return scores / scores.abs().amax().clamp_min(1e-12)


def ablation_sets(
    scores: FeatureScores, activation: Float[Tensor, "classes latents"], *, size: int, seed: int, rank: str = "contrast"
) -> dict[str, dict[str, tuple[int, ...]]]:
    """For each class, `size` latents of highest rank (`top`), and two control sets that fire as much as these together.

    A set that hardly fires proves nothing when it is silenced. So `random` latents are taken in a random order, and those
    of a score nearest 0 (`bottom`) in that order, until their activations (mean on images of the class) sum to those of
    `top`. Both are of latents that fire and are not in `top`.

    Raises:
        ValueError: all others together fire less than the `size` of highest rank.
    """
    found = {}
    # One stream for all classes: seeded for each, their random orders would be the same.
    generator = torch.Generator().manual_seed(seed)
    for index, name in enumerate(scores.attribute.classes):
        # In double: running sums over thousands of latents are compared below.
        own, mass = ranked(scores.total(), rank)[index], activation[index].double()
        top = own.argsort(descending=True)[:size]
        others = (mass > 0).nonzero()[:, 0]
        others = others[~torch.isin(others, top)]
        wanted = float(mass[top].sum())
        if not len(others) or float(mass[others].sum()) < wanted:
            raise ValueError(
                f"the {size} latents that drive {name!r} most fire more than all others together; lower task.size."
            )
        orders = {
            "random": others[torch.randperm(len(others), generator=generator)],
            "bottom": others[own[others].abs().argsort()],
        }
        chosen = {"top": top, **{kind: _until(mass, order, wanted) for kind, order in orders.items()}}
        found[name] = {kind: tuple(latents.tolist()) for kind, latents in chosen.items()}
    return found


def _until(mass: Tensor, order: Tensor, wanted: float) -> Tensor:
    """The first latents of an order whose masses sum to what is wanted, or to the nearest that whole latents give."""
    reached = mass[order].cumsum(0)
    count = int((reached < wanted).sum()) + 1
    if count > 1 and wanted - float(reached[count - 2]) < float(reached[count - 1]) - wanted:
        count -= 1
    return order[:count]
