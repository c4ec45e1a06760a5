"""How well single latents tell two groups of images apart, and whether they tell only that."""

import torch
from jaxtyping import Float
from torch import Tensor


def paired_auc(
    first: Float[Tensor, "some latents"], second: Float[Tensor, "others latents"]
) -> Float[Tensor, "latents"]:
    """Per latent, how often a drawn value of `second` exceeds one of `first`, a tie counting half: 0.5 tells nothing."""
    values, n = torch.cat([first, second]).double(), len(first)
    ranks = _average_ranks(values)
    # The rank sum less the smallest it can be: Mann and Whitney's U, without a table of all pairs.
    excess = ranks[n:].sum(0) - len(second) * (len(second) + 1) / 2
    return excess / (n * len(second))


def _average_ranks(values: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Ranks from 1 within each column, ties sharing their mean."""
    # Sparse codes tie at 0 in most images: did ties not share a rank, the order of the images would decide.
    # Contiguous, since `searchsorted` warns of anything else.
    ordered = values.T.contiguous().sort(1).values
    below = torch.searchsorted(ordered, values.T.contiguous())
    up_to = torch.searchsorted(ordered, values.T.contiguous(), right=True)
    return ((below + up_to + 1).double() / 2).T


def separation(auc: Float[Tensor, "... latents"]) -> Float[Tensor, "... latents"]:
    """|2·AUC − 1|: 0 tells nothing, 1 everything, whichever way round."""
    return (2 * auc - 1).abs()


def monosemanticity(scores: Float[Tensor, "factors latents"], factor: int) -> Float[Tensor, "latents"]:
    """Separation of one factor less the largest of any other: 1 for a latent that tells this factor alone."""
    others = torch.cat([scores[:factor], scores[factor + 1 :]])
    return scores[factor] - others.amax(0)
