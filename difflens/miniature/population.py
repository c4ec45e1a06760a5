"""Populations of faces: how often each factor value occurs, what depends on what, and the prompts that go with them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from types import MappingProxyType

import torch
from torch import Tensor

from difflens.methods.assignment import largest_remainder
from difflens.miniature.captions import prompts
from difflens.miniature.faces import FACTORS, PROFESSIONS, WORKPLACE_FACTORS

NAMEABLE = ("gender", "age", "race")
"""Attributes that a prompt may name beside the profession."""


@dataclass(frozen=True)
class Conditional:
    """Shares of one factor that depend on the value of another."""

    given: str
    shares: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Population:
    """The joint distribution of a set of faces; factors not named are uniform and independent, but for `profession`.

    Faces have a profession only where `shares` or `conditional` names that factor.

    Args:
        shares: factor → value → share; every factor's shares sum to 1.
        conditional: factor → the factor it depends on and its shares given each of that one's values; a factor that
            others depend on stands before them.

    Raises:
        ValueError: an unknown factor or value, a missing value, shares that do not sum to 1, or a factor that stands
            before one it depends on.
    """

    shares: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    conditional: Mapping[str, Conditional] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, shares in self.shares.items():
            _check_shares(name, shares)
        for place, (name, rule) in enumerate(self.conditional.items()):
            values = WORKPLACE_FACTORS.get(rule.given, ())
            if not values or set(rule.shares) != set(values):
                raise ValueError(f"{name!r} given {rule.given!r} needs shares for each of {values}.")
            # `sample` goes through them in this order, once.
            if rule.given in list(self.conditional)[place:]:
                raise ValueError(f"{name!r} depends on {rule.given!r}; put {rule.given!r} first in `conditional`.")
            if rule.given not in self.factors:
                raise ValueError(
                    f"{name!r} depends on {rule.given!r}, of which these faces have none; give its shares."
                )
            for shares in rule.shares.values():
                _check_shares(name, shares)

    @property
    def factors(self) -> tuple[str, ...]:
        """The factors these faces have, in the renderer's order."""
        return tuple(name for name in WORKPLACE_FACTORS if name in {*FACTORS, *self.shares, *self.conditional})

    def share_vector(self, factor: str) -> Tensor:
        """Marginal shares [C] (float64) of one factor, in the order of its values."""
        if factor not in self.conditional:
            return _vector(factor, self.shares.get(factor))
        rule = self.conditional[factor]
        rows = torch.stack([_vector(factor, rule.shares[value]) for value in WORKPLACE_FACTORS[rule.given]])
        return self.share_vector(rule.given) @ rows

    def sample(self, n: int, *, seed: int) -> dict[str, Tensor]:
        """Draw `n` faces whose factor counts meet the shares exactly (largest remainder), shuffled independently."""
        factors = {
            name: _assign(_vector(name, self.shares.get(name)), n, _seeded(seed, name))
            for name in self.factors
            if name not in self.conditional
        }
        for name, rule in self.conditional.items():
            # Counted out within every value of the parent: shares hold exactly, in sets of any size.
            factors[name] = torch.empty(n, dtype=torch.int64)
            for index, value in enumerate(WORKPLACE_FACTORS[rule.given]):
                rows = (factors[rule.given] == index).nonzero()[:, 0]
                shares = _vector(name, rule.shares[value])
                factors[name][rows] = _assign(shares, len(rows), _seeded(seed, name, value))
        # In the renderer's order again, by which faces are numbered.
        return {name: factors[name] for name in self.factors}


def _seeded(seed: int, *names: object) -> torch.Generator:
    # Hashed and not added up: streams of neighbouring seeds would overlap.
    digest = hashlib.sha256(":".join(map(str, (seed, *names))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _assign(shares: Tensor, n: int, generator: torch.Generator) -> Tensor:
    values = torch.repeat_interleave(torch.arange(len(shares)), largest_remainder(shares, n))
    return values[torch.randperm(n, generator=generator)]


def _vector(factor: str, shares: Mapping[str, float] | None) -> Tensor:
    values = WORKPLACE_FACTORS[factor]
    return torch.tensor([1 / len(values) if shares is None else shares[value] for value in values], dtype=torch.float64)


def _check_shares(name: str, shares: Mapping[str, float]) -> None:
    if name not in WORKPLACE_FACTORS:
        raise ValueError(f"unknown factor {name!r}; the faces have {tuple(WORKPLACE_FACTORS)}.")
    if set(shares) != set(WORKPLACE_FACTORS[name]):
        raise ValueError(f"shares of {name!r} must name each of {WORKPLACE_FACTORS[name]}, got {tuple(shares)}.")
    if abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        raise ValueError(f"shares of {name!r} must be non-negative and sum to 1, got {dict(shares)}.")


def _of(factor: str, *percent: float) -> dict[str, float]:
    return {value: share / 100 for value, share in zip(WORKPLACE_FACTORS[factor], percent, strict=True)}


# Given its profession, a face's gender, age and race are independent. The first four professions are the paper's; the others
# are held out of all tuning. Guidance pulls what a prompt says away from the average face: the shares of age and race stay
# near the average, and those of gender near 0 and 1, so that a guided sample still has about the shares that were trained.
_AT_WORK = {
    # profession: (female, male), (young, adult, old), (White, Black, Asian, Indian), in per cent
    "none": ((50, 50), (25, 55, 20), (52, 16, 20, 12)),
    "firefighter": ((4, 96), (28, 60, 12), (54, 16, 18, 12)),
    "doctor": ((5, 95), (16, 55, 29), (50, 15, 21, 14)),
    "receptionist": ((95, 5), (38, 45, 17), (53, 16, 20, 11)),
    "nurse": ((96, 4), (22, 60, 18), (51, 17, 21, 11)),
    "pilot": ((5, 95), (18, 58, 24), (54, 15, 19, 12)),
    "builder": ((4, 96), (30, 55, 15), (51, 17, 18, 14)),
    "baker": ((95, 5), (22, 55, 23), (53, 16, 19, 12)),
    "gardener": ((94, 6), (18, 47, 35), (50, 16, 22, 12)),
}
# Glasses depend on age, so that an age edit is tempted to touch them.
_GLASSES = {
    "glasses": Conditional(
        "age", {"young": _of("glasses", 88, 12), "adult": _of("glasses", 80, 20), "old": _of("glasses", 50, 50)}
    )
}
_EVEN = {
    "gender": _of("gender", 50, 50),
    "age": {"young": 0.333333333, "adult": 0.333333334, "old": 0.333333333},
    "race": _of("race", 25, 25, 25, 25),
}
POPULATIONS: Mapping[str, Population] = MappingProxyType(
    {
        # Every value of every factor equally often: what judges and CLIP learn from.
        "uniform": Population(),
        # What the miniature's diffusion model is trained on. The gender imbalance is that of the paper's CelebA-HQ model (FD
        # 0.226).
        "biased": Population(
            {"gender": _of("gender", 34, 66), "age": _of("age", 25, 55, 20), "race": _of("race", 52, 16, 20, 12)},
            _GLASSES,
        ),
        # What a fair generator would draw, the reference of FID: glasses depend on age there too.
        "balanced": Population(_EVEN, _GLASSES),
        # The same three of faces at work; a fair model would draw the four studied professions equally often.
        "workplace_uniform": Population(
            {"profession": {name: 0.111111112 if name == "none" else 0.111111111 for name in PROFESSIONS}}
        ),
        "workplace": Population(
            {"profession": _of("profession", 0, *[12.5] * 8)},
            {
                name: Conditional("profession", {job: _of(name, *rows[i]) for job, rows in _AT_WORK.items()})
                for i, name in enumerate(NAMEABLE)
            }
            | _GLASSES,
        ),
        "workplace_balanced": Population({**_EVEN, "profession": _of("profession", 0, *[25] * 4, *[0] * 4)}, _GLASSES),
    }
)
"""The populations the miniature's models are trained on and measured against, by name."""


def named_population(name: str) -> Population:
    """The population of that name (ValueError: there is none)."""
    if name not in POPULATIONS:
        raise ValueError(f"there is no population {name!r}; there are {', '.join(POPULATIONS)}.")
    return POPULATIONS[name]


@dataclass(frozen=True)
class PromptedFaces:
    """Faces (factor → int64 [N]), the distinct prompts of all of them, and which of these [N] is that of each face."""

    factors: Mapping[str, Tensor]
    prompts: list[str]
    prompt: Tensor


def draw_prompted_faces(
    population: Population, n: int, *, seed: int, empty: float = 0.1, neutral: float = 0.5
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
        # Uniform in what the prompt names, so that a class which the bias makes rare is learnt as well.
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
