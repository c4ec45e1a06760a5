"""Fairness discrepancies as the paper's released code computes them from raw FairFace outputs (METHOD section 9)."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

OUTPUTS = 18
"""FairFace outputs: 0:7 race, 7:9 gender, 9:18 age (0-2, 3-9, 10-19, 20-29, … 70+)."""


class OfficialDiscrepancies(NamedTuple):
    """Soft FD per attribute against a uniform target."""

    gender: float
    age: float
    race: float


def official_discrepancies(logits: Float[Tensor, "images outputs"]) -> OfficialDiscrepancies:
    """Soft FD of gender, age (young 0-19, adult 20-59, old 60+) and race under `protocol: official`.

    Each attribute's softmax runs over its own outputs. Race keeps the first four of seven probabilities (White, Black,
    Latino, East Asian) without renormalising them and compares each with 0.25, so that it is not zero for any sampler
    that the judge sometimes places in another race.

    Raises:
        ValueError: the logits are not [N, 18] with N ≥ 1.
    """
    if logits.ndim != 2 or logits.shape[1] != OUTPUTS or len(logits) == 0:
        raise ValueError(f"the official protocol reads FairFace logits [N, {OUTPUTS}], got {list(logits.shape)}.")
    # As released, faults included: these numbers stand beside the paper's and nowhere else.
    race, gender, age = (part.double().softmax(-1).mean(0) for part in torch.split(logits, [7, 2, 9], dim=1))
    grouped = torch.stack([age[:3].sum(), age[3:7].sum(), age[7:].sum()])
    return OfficialDiscrepancies(*(_from_uniform(p) for p in (gender, grouped, race[:4])))


def _from_uniform(p: Tensor) -> float:
    return float((p - 1 / len(p)).square().sum().sqrt())
