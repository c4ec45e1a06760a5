"""The causal control: sets of latents whose ablation should matter much, little, or not at all."""

import torch
from jaxtyping import Float
from torch import Tensor

from difflens.attribution.select import ranked
from difflens.vocabulary import FeatureScores


def ablation_sets(
    scores: FeatureScores, activation: Float[Tensor, "classes latents"], *, size: int, seed: int, rank: str = "contrast"
) -> dict[str, dict[str, tuple[int, ...]]]:
    """For each class, `size` latents: those of highest rank (`top`), of a score nearest 0 (`bottom`), and `random` ones.

    Bottom and random are drawn from latents that fire on images of the class and are not in `top`: ablating a silent
    latent would prove nothing. `rank` says what they are ranked by, see `select.ranked`.

    Raises:
        ValueError: fewer than 2 × `size` latents fire on images of a class.
    """
    found = {}
    generator = torch.Generator().manual_seed(seed)
    for index, name in enumerate(scores.attribute.classes):
        own = ranked(scores.total(), rank)[index]
        top = own.argsort(descending=True)[:size]
        candidates = (activation[index] > 0).nonzero()[:, 0]
        candidates = candidates[~torch.isin(candidates, top)]
        if len(candidates) < size:
            raise ValueError(
                f"only {len(candidates)} further latents fire on {name!r} images; lower attribution.top to them."
            )
        bottom = candidates[own[candidates].abs().argsort()[:size]]
        random = candidates[torch.randperm(len(candidates), generator=generator)[:size]]
        found[name] = {"top": as_tuple(top), "random": as_tuple(random), "bottom": as_tuple(bottom)}
    return found


def as_tuple(latents: Tensor) -> tuple[int, ...]:
    """Latent numbers as plain integers."""
    return tuple(int(latent) for latent in latents)
