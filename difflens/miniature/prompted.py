"""Faces with the prompts a text-to-image model learns them from: what a prompt leaves out stays biased."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from difflens.methods.assignment import largest_remainder
from difflens.miniature.captions import prompts
from difflens.miniature.population import Population

NAMEABLE = ("gender", "age", "race")
"""Attributes that a prompt may name beside the profession."""


@dataclass(frozen=True)
class PromptedFaces:
    """Faces (factor → int64 [N]), the distinct prompts of all of them, and which of these [N] is that of each face."""

    factors: Mapping[str, Tensor]
    prompts: list[str]
    prompt: Tensor


def draw_prompted_faces(
    population: Population,
    n: int,
    *,
    seed: int,
    empty: float = 0.1,
    neutral: float = 0.5,
) -> PromptedFaces:
    """Draw `n` faces: attributes that a prompt names are uniform, all else is as `population` has it.

    A share `empty` of the prompts is empty; of the others all name the profession, a share `neutral` nothing else, and the
    rest one of the seven other subsets of gender, age and race, each equally often. Shares are met exactly.
    """
    subsets = [names for size in range(len(NAMEABLE) + 1) for names in combinations(NAMEABLE, size)]
    others = (1 - empty) * (1 - neutral) / (len(subsets) - 1)
    counts = largest_remainder(torch.tensor([empty, (1 - empty) * neutral, *[others] * (len(subsets) - 1)]), n).tolist()
    drawn, texts = [population.sample(counts[0], seed=seed)], [""] * counts[0]
    for i, (names, count) in enumerate(zip(subsets, counts[1:], strict=True), start=1):
        drawn.append(without_bias(population, names).sample(count, seed=seed + 1_000 * i))
        texts += prompts(drawn[-1], {name: torch.ones(count, dtype=torch.bool) for name in ("profession", *names)})
    factors = {name: torch.cat([faces[name] for faces in drawn]) for name in population.factors}
    distinct = sorted(set(texts))
    number = {text: i for i, text in enumerate(distinct)}
    return PromptedFaces(factors, distinct, torch.tensor([number[text] for text in texts]))


def without_bias(population: Population, names: tuple[str, ...]) -> Population:
    """The population with the factors `names` uniform and independent; those that depend on them still do."""
    return replace(
        population,
        shares={name: shares for name, shares in population.shares.items() if name not in names},
        conditional={name: rule for name, rule in population.conditional.items() if name not in names},
    )
