"""How well single latents tell two groups of images apart, and whether they tell only that."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor


def paired_auc(
    first: Float[Tensor, "some latents"], second: Float[Tensor, "others latents"]
) -> Float[Tensor, "latents"]:
    """Per latent, how often a drawn value of `second` exceeds one of `first`, a tie counting half: 0.5 tells nothing."""
    n = len(first)
    # Sparse codes tie at 0 in most images: did ties not share a rank, the order of the images would decide.
    ranks = torch.from_numpy(rankdata(torch.cat([first, second]).double().numpy(), axis=0))
    # The rank sum less the smallest it can be: Mann and Whitney's U, without a table of all pairs.
    excess = ranks[n:].sum(0) - len(second) * (len(second) + 1) / 2
    return excess / (n * len(second))


def separation(auc: Float[Tensor, "... latents"]) -> Float[Tensor, "... latents"]:
    """|2·AUC − 1|: 0 tells nothing, 1 everything, whichever way round."""
    return (2 * auc - 1).abs()


def monosemanticity(scores: Float[Tensor, "factors latents"], factor: int) -> Float[Tensor, "latents"]:
    """Separation of one factor less the largest of any other: 1 for a latent that tells this factor alone."""
    others = torch.cat([scores[:factor], scores[factor + 1 :]])
    return scores[factor] - others.amax(0)


class BestLatent(NamedTuple):
    """The latent that tells an attribute best, chosen on one half of the images and measured on the other.

    Attributes:
        latent: which.
        name: the class it tells from all others.
        auc: how often it is on the side of an image of the class, of two drawn from the other half; 0.5 tells nothing.
        error: the standard deviation of `auc` for a latent that tells nothing.
        other: the other attribute that it tells best; None where no other is known.
        other_auc: the same of that one; None likewise.
    """

    latent: int
    name: str
    auc: float
    error: float
    other: str | None
    other_auc: float | None


def best_latent(
    codes: Float[Tensor, "images latents"],
    labels: Mapping[str, Int[Tensor, "images"]],
    classes: Mapping[str, Sequence[str]],
    studied: str,
) -> BestLatent | None:
    """The latent that tells the studied attribute best, and what else it tells; None where images or classes are too few.

    Args:
        codes: of each image, summed over positions and steps.
        labels: attribute → the class of each image.
        classes: attribute → its classes.
        studied: the attribute in question.
    """
    # Of a thousand latents the best one looks good by chance alone on the images it was chosen on.
    choose, measure = torch.arange(len(codes)) % 2 == 0, torch.arange(len(codes)) % 2 == 1

    def aucs(name: str, latents: Tensor, half: Tensor) -> Float[Tensor, "classes latents"]:
        own, found = labels[name][half], []
        for index in range(len(classes[name])):
            member = own == index
            values = codes[half][:, latents]
            # A class that only one of the sides has cannot be told from anything.
            told = member.any() and not member.all()
            found.append(paired_auc(values[~member], values[member]) if told else torch.full((len(latents),), 0.5))
        return torch.stack([each.double() for each in found])

    def best(name: str, latents: Tensor) -> tuple[int, int, float, float]:
        """Latent, class, and how well it is told on either half, the way round that the first one has it."""
        first = aucs(name, latents, choose)
        index, place = divmod(int(separation(first).argmax()), len(latents))
        way = 1 if first[index, place] >= 0.5 else -1
        second = aucs(name, latents[[place]], measure)[index, 0]
        return int(latents[place]), index, float(separation(first)[index, place]), 0.5 + way * float(second - 0.5)

    everyone = torch.arange(codes.shape[1])
    latent, index, _, auc = best(studied, everyone)
    members = int((labels[studied][measure] == index).sum())
    rest = int(measure.sum()) - members
    if not members or not rest:
        return None
    # Of the rank sum of two samples from one distribution (Mann and Whitney 1947).
    error = ((members + rest + 1) / (12 * members * rest)) ** 0.5
    others = {name: best(name, torch.tensor([latent])) for name in labels if name != studied}
    strongest = max(others, key=lambda name: others[name][2], default=None)
    told = None if strongest is None else others[strongest][3]
    return BestLatent(latent, classes[studied][index], auc, error, strongest, told)
