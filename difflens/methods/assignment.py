"""Who is moved: one target class per image, so that the classes meet the target distribution."""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from difflens.vocabulary import UNTOUCHED

Rule = Literal["affinity", "exact", "iid", "batch", "everyone"]


def largest_remainder(shares: Float[Tensor, "classes"], n: int) -> Int[Tensor, "classes"]:
    """Whole counts in proportion to `shares` that sum to `n`."""
    exact = shares.double() / shares.double().sum() * n
    counts = exact.floor().long()
    order = torch.argsort(exact - counts, descending=True, stable=True)
    counts[order[: n - int(counts.sum())]] += 1
    return counts


def assign_exact(target: Float[Tensor, "classes"], n: int, *, seed: int) -> Int[Tensor, "images"]:
    """Every image gets a class, in exact quota (largest remainder), shuffled."""
    classes = torch.repeat_interleave(torch.arange(len(target)), largest_remainder(target, n))
    return classes[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]


def assign_iid(target: Float[Tensor, "classes"], n: int, *, seed: int) -> Int[Tensor, "images"]:
    """Every image draws its class independently."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(target.float(), n, replacement=True, generator=generator)


def assign_batches(target: Float[Tensor, "classes"], n: int, *, size: int, seed: int) -> Int[Tensor, "images"]:
    """One class is drawn for every `size` images in a row, as in the released code; the last ones may be fewer."""
    return assign_iid(target, -(-n // size), seed=seed).repeat_interleave(size)[:n]


def assign_by_affinity(
    target: Float[Tensor, "classes"],
    current: Int[Tensor, "images"],
    affinity: Float[Tensor, "images classes"],
) -> Int[Tensor, "images"]:
    """The fewest images change class under the exact quotas, and among them those nearest to their new class.

    Args:
        target: q.
        current: the class each original image shows.
        affinity: how near each image is to each class, such as probe logits; larger is nearer.

    Returns:
        The new class of each moved image, `UNTOUCHED` for all others.
    """
    classes = len(target)
    surplus = torch.bincount(current, minlength=classes) - largest_remainder(target, len(current))
    rows = torch.cat(
        [torch.zeros(0, dtype=torch.int64)] + [(current == c).nonzero()[:, 0] for c in range(classes) if surplus[c] > 0]
    )
    wanted = torch.repeat_interleave(torch.arange(classes), (-surplus).clamp_min(0))
    result = torch.full_like(current, UNTOUCHED)
    if not len(wanted):
        return result
    gain = (affinity.gather(1, wanted.expand(len(affinity), -1)) - affinity.gather(1, current[:, None]))[rows]
    for image, slot in _best_moves(gain, current[rows], wanted, surplus.clamp_min(0)):
        result[rows[image]] = wanted[slot]
    return result


def _best_moves(gain: Tensor, origin: Tensor, wanted: Tensor, surplus: Tensor) -> list[tuple[int, int]]:
    """Pairs (image, slot) of largest total gain in which class c gives away exactly surplus[c] images.

    Each class's images compete for its surplus by keeping slots that cost nothing, which makes this one assignment problem.
    """
    count = torch.bincount(origin, minlength=len(surplus))
    keep = torch.repeat_interleave(torch.arange(len(surplus)), (count - surplus).clamp_min(0))
    stay = torch.where(origin[:, None] == keep, 0.0, -1e9)
    _, columns = linear_sum_assignment(torch.cat([gain.double(), stay.double()], 1).numpy(), maximize=True)
    return [(image, int(slot)) for image, slot in enumerate(columns) if slot < len(wanted)]


def check_rule(rule: str) -> Rule:
    """The rule's name.

    Raises:
        ValueError: it is unknown.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"mitigation.assignment must be one of {get_args(Rule)}, got {rule!r}.")
    return rule  # type: ignore[return-value]
