"""Populations of faces: how often each factor value occurs, and which nuisance depends on which attribute."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from difflens.methods.assignment import largest_remainder
from difflens.miniature.faces import FACTORS, WORKPLACE_FACTORS


def _seeded(seed: int, *names: object) -> torch.Generator:
    digest = hashlib.sha256(":".join(map(str, (seed, *names))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


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
        for name, rule in self.conditional.items():
            values = WORKPLACE_FACTORS.get(rule.given, ())
            if not values or set(rule.shares) != set(values):
                raise ValueError(f"{name!r} given {rule.given!r} needs shares for each of {values}.")
            if rule.given in list(self.conditional)[list(self.conditional).index(name) :]:
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
        given = self.share_vector(rule.given)
        rows = torch.stack([_vector(factor, rule.shares[value]) for value in WORKPLACE_FACTORS[rule.given]])
        return given @ rows

    def sample(self, n: int, *, seed: int) -> dict[str, Tensor]:
        """Draw `n` faces whose factor counts meet the shares exactly (largest remainder), shuffled independently."""
        factors = {
            name: _assign(_vector(name, self.shares.get(name)), n, _seeded(seed, name))
            for name in self.factors
            if name not in self.conditional
        }
        for name, rule in self.conditional.items():
            factors[name] = torch.empty(n, dtype=torch.int64)
            for index, value in enumerate(WORKPLACE_FACTORS[rule.given]):
                rows = (factors[rule.given] == index).nonzero()[:, 0]
                shares = _vector(name, rule.shares[value])
                factors[name][rows] = _assign(shares, len(rows), _seeded(seed, name, value))
        return {name: factors[name] for name in self.factors}


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
