"""How strongly: the smallest strength per class at which the realised shares meet the requested ones."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Dose:
    """One measured point: the strength per class, the share of each class's images that show it, and the classes' shares.

    `success` is NaN for a class no image was pushed towards.
    """

    strength: Float[Tensor, "classes"]
    success: Float[Tensor, "classes"]
    shares: Float[Tensor, "classes"]


@dataclass(frozen=True)
class Calibration:
    """The chosen strength per class, whether each class met its share, and every dose measured on the way."""

    strength: Float[Tensor, "classes"]
    met: tuple[bool, ...]
    doses: tuple[Dose, ...]


def calibrate(
    measure: Callable[[Float[Tensor, "classes"]], Dose],
    target: Float[Tensor, "classes"],
    *,
    neutral: float,
    first: float,
    largest: float,
    tolerance: float,
    refinements: int,
) -> Calibration:
    """Bracket, then bisect, all classes at once: a measurement serves each of them (METHOD section 6).

    A class whose share no strength meets gets the strength that came nearest to it.

    Args:
        measure: generates the calibration images at a strength per class and reads their classes.
        target: requested shares q.
        neutral: the strength that changes nothing.
        first: the first strength tried, beyond neutral; doubled (from neutral) until the share is met.
        largest: the strongest edit allowed.
        tolerance: a class meets its share at q − tolerance.
        refinements: bisections after bracketing.

    Raises:
        ValueError: `first` or `largest` does not lie beyond neutral, in that order.
    """
    if not 0 < first - neutral <= largest - neutral:
        raise ValueError(f"calibration needs neutral < first ≤ largest, got {neutral}, {first}, {largest}.")
    classes = len(target)
    doses: list[Dose] = []

    def met(strength: Tensor) -> Tensor:
        doses.append(measure(strength))
        return (doses[-1].shares >= target - tolerance) | doses[-1].success.isnan()

    low = torch.full((classes,), neutral, dtype=torch.float64)
    high = torch.full((classes,), first, dtype=torch.float64)
    done = met(high)
    while not done.all() and bool((high[~done] < largest).any()):
        low = torch.where(done, low, high)
        high = torch.where(done, high, (neutral + 2 * (high - neutral)).clamp_max(largest))
        done = done | met(high)
    pushed = ~doses[0].success.isnan()
    for _ in range(refinements if (done & pushed).any() else 0):
        middle = torch.where(done, (low + high) / 2, high)
        enough = met(middle)
        high = torch.where(done & enough, middle, high)
        low = torch.where(done & ~enough, middle, low)
    # Too strong an edit can do less than a weaker one: where no share was met, the best one measured is taken.
    best = torch.stack([dose.shares for dose in doses]).argmax(0)
    tried = torch.stack([dose.strength for dose in doses]).gather(0, best[None])[0]
    strength = torch.where(pushed, torch.where(done, high, tried), torch.full_like(high, neutral))
    return Calibration(strength, tuple(bool(d) for d in done), tuple(doses))
