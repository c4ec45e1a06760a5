"""Faces with the prompts a text-to-image model learns them from: what a prompt leaves out stays biased."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from types import MappingProxyType

import torch
from torch import Tensor

from difflens.miniature.captions import prompts
from difflens.miniature.population import Population
from difflens.mitigation.assignment import largest_remainder

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
    exaggerated: Mapping[str, float] = MappingProxyType({}),
) -> PromptedFaces:
    """Draw `n` faces: attributes that a prompt names are uniform, all else is as `population` has it.

    A share `empty` of the prompts is empty; of the others all name the profession, a share `neutral` nothing else, and the
    rest one of the seven other subsets of gender, age and race, each equally often. Shares are met exactly.

    Faces of empty prompts have the biases of `exaggerated` (see `exaggerate`): guidance moves away from them.
    """
    subsets = [names for size in range(len(NAMEABLE) + 1) for names in combinations(NAMEABLE, size)]
    others = (1 - empty) * (1 - neutral) / (len(subsets) - 1)
    counts = largest_remainder(torch.tensor([empty, (1 - empty) * neutral, *[others] * (len(subsets) - 1)]), n).tolist()
    drawn, texts = [exaggerate(population, exaggerated).sample(counts[0], seed=seed)], [""] * counts[0]
    for i, (names, count) in enumerate(zip(subsets, counts[1:], strict=True), start=1):
        drawn.append(without_bias(population, names).sample(count, seed=seed + 1_000 * i))
        texts += prompts(drawn[-1], {name: torch.ones(count, dtype=torch.bool) for name in ("profession", *names)})
    factors = {name: torch.cat([faces[name] for faces in drawn]) for name in population.factors}
    distinct = sorted(set(texts))
    number = {text: i for i, text in enumerate(distinct)}
    return PromptedFaces(factors, distinct, torch.tensor([number[text] for text in texts]))


def exaggerate(population: Population, powers: Mapping[str, float]) -> Population:
    """The population with the conditional shares of each factor in `powers` taken to that power, and normalised.

    Guidance of scale w draws from about p(x | prompt)^w / p(x | empty)^(w - 1) (Ho & Salimans, 2022). While an image is too
    noisy to show its profession but already shows its gender, that exaggerates the gender typical of the prompt; once
    the profession shows, empty prompts whose gender is more biased still pull the other way.
    """
    rules = {name: population.conditional[name] for name in powers}
    raised = {
        name: {key: _raised(row, powers[name]) for key, row in rule.shares.items()} for name, rule in rules.items()
    }
    changed = {name: replace(rule, shares=raised[name]) for name, rule in rules.items()}
    return replace(population, conditional={**population.conditional, **changed})


def _raised(shares: Mapping[str, float], power: float) -> dict[str, float]:
    total = sum(share**power for share in shares.values())
    return {value: share**power / total for value, share in shares.items()}


def without_bias(population: Population, names: tuple[str, ...]) -> Population:
    """The population with the factors `names` uniform and independent; those that depend on them still do."""
    return replace(
        population,
        shares={name: shares for name, shares in population.shares.items() if name not in names},
        conditional={name: rule for name, rule in population.conditional.items() if name not in names},
    )
