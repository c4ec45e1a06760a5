"""Who is moved: the target distributions asked for, and one target class per image that meets them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from difflens.vocabulary import UNTOUCHED, Attribute

Rule = Literal["exact", "early", "oracle", "iid", "batch", "everyone"]
"""Who is pushed towards which class (METHOD section 6)."""


def largest_remainder(shares: Float[Tensor, "classes"], n: int) -> Int[Tensor, "classes"]:
    """Whole counts in proportion to `shares` that sum to `n`."""
    # In double: remainders of large n are compared, which float32 would round.
    exact = shares.double() / shares.double().sum() * n
    counts = exact.floor().long()
    # Stable: of equal remainders the first class's counts, on every machine.
    order = torch.argsort(exact - counts, descending=True, stable=True)
    counts[order[: n - int(counts.sum())]] += 1
    return counts


def assign_exact(target: Float[Tensor, "classes"], n: int, *, seed: int) -> Int[Tensor, "images"]:
    """Every image gets a class, in exact quota (largest remainder), shuffled."""
    # Nothing is read off the images: a rule that looks at finished ones is measured itself, not the method.
    classes = torch.repeat_interleave(torch.arange(len(target)), largest_remainder(target, n))
    return classes[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]


def assign_iid(target: Float[Tensor, "classes"], n: int, *, seed: int) -> Int[Tensor, "images"]:
    """Every image draws its class independently."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(target.float(), n, replacement=True, generator=generator)


TOGETHER = 16
"""Images for which the released code draws one class."""


def assign_batches(target: Float[Tensor, "classes"], n: int, *, seed: int) -> Int[Tensor, "images"]:
    """One class is drawn for every `TOGETHER` images in a row, as in the released code; the last ones may be fewer."""
    # So few draws miss the target by themselves: with 32 of them a perfect edit's expected FD is 0.10.
    return assign_iid(target, -(-n // TOGETHER), seed=seed).repeat_interleave(TOGETHER)[:n]


def assign_by_nearness(
    target: Float[Tensor, "classes"],
    current: Int[Tensor, "images"],
    nearness: Float[Tensor, "images classes"],
) -> Int[Tensor, "images"]:
    """The fewest images change class under the exact quotas, and among them those nearest to their new class.

    Args:
        target: q.
        current: the class each original image shows.
        nearness: how near each image is to each class, such as probe logits; larger is nearer.

    Returns:
        The new class of each moved image, `UNTOUCHED` for all others.
    """
    classes = len(target)
    surplus = torch.bincount(current, minlength=classes) - largest_remainder(target, len(current))
    # Only classes in surplus give images away, which makes the moves the fewest. The empty tensor is there for `cat`,
    # which takes no empty list.
    rows = torch.cat(
        [torch.zeros(0, dtype=torch.int64)] + [(current == c).nonzero()[:, 0] for c in range(classes) if surplus[c] > 0]
    )
    wanted = torch.repeat_interleave(torch.arange(classes), (-surplus).clamp_min(0))
    result = torch.full_like(current, UNTOUCHED)
    if not len(wanted):
        return result
    # Over staying: of two images as near to the new class, the one that hardly shows its own class moves.
    gain = (nearness.gather(1, wanted.expand(len(nearness), -1)) - nearness.gather(1, current[:, None]))[rows]
    for image, slot in _best_moves(gain, current[rows], wanted, surplus.clamp_min(0)):
        result[rows[image]] = wanted[slot]
    return result


def _best_moves(gain: Tensor, origin: Tensor, wanted: Tensor, surplus: Tensor) -> list[tuple[int, int]]:
    """Pairs (image, slot) of largest total gain in which class c gives away exactly surplus[c] images.

    Each class's images compete for its surplus by keeping slots that cost nothing, which makes this one assignment problem.
    """
    count = torch.bincount(origin, minlength=len(surplus))
    keep = torch.repeat_interleave(torch.arange(len(surplus)), (count - surplus).clamp_min(0))
    # Finite, yet worse than any gain: no image takes a slot that keeps another class.
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


@dataclass(frozen=True)
class Goals:
    """Target distributions q [C] (float64): that of each prompt named in `own`, and `shared` for every other image."""

    shared: Float[Tensor, "classes"]
    own: Mapping[str, Float[Tensor, "classes"]] = field(default_factory=dict)

    def of(self, prompt: str | None) -> Float[Tensor, "classes"]:
        """The target of the images of a prompt, or of a model without prompts."""
        return self.shared if prompt is None else self.own.get(prompt, self.shared)

    def pooled(self, prompts: Sequence[str] | None) -> Float[Tensor, "classes"]:
        """The target of all images together, given the prompt of each: the mean of theirs."""
        if prompts is None or not self.own:
            return self.shared
        return torch.stack([self.of(prompt) for prompt in prompts]).mean(0)


def read_goals(attribute: Attribute, described: Mapping[str, Any] | None, *, prompts: Sequence[str] = ()) -> Goals:
    """The targets that a configuration describes: shares of all images, or prompt → shares.

    Prompts left out of the second form are asked for equal shares; see `Attribute.target` for the shares.

    Raises:
        ValueError: a prompt is none of `prompts`, or shares are not those of a distribution.
    """
    parts = {part.name for part in attribute.parts}
    # Shares of a product's parts are nested as well: prompts are meant where no key names a part.
    by_prompt = (
        described and all(isinstance(shares, Mapping) for shares in described.values()) and not parts & {*described}
    )
    if not described or not by_prompt:
        return Goals(attribute.target(described))
    unknown = [name for name in described if name not in prompts]
    if unknown:
        raise ValueError(f"mitigation.target names {unknown}, which are no prompts of the study: {list(prompts)}.")
    return Goals(attribute.target(None), {prompt: attribute.target(shares) for prompt, shares in described.items()})


def fewest_pushes(target: Float[Tensor, "classes"], natural: Float[Tensor, "classes"]) -> Float[Tensor, "parts"]:
    """How many images to push where nobody sees which class they would show: those of all classes, then the untouched.

    Of n images, u·n stay as they are and q_c·n are pushed towards class c, whatever they would show, so that the target is
    expected: q_c = target_c − u·natural_c, with u as large as no negative q allows. A class that the model shows too often
    gets no push.

    Args:
        target: share of each class asked for.
        natural: share of each class among the model's own images.
    """
    target, natural = target.double() / target.double().sum(), natural.double() / natural.double().sum()
    # A class that the model never shows (a zero below the line) is never in surplus, so it sets no bound.
    untouched = (target / natural).nan_to_num(torch.inf, posinf=torch.inf).min().clamp_max(1)
    return torch.cat([(target - untouched * natural).clamp_min(0), untouched[None]])


class Quota:
    """Gives the images of each call their classes: after n images in all, the counts are the largest-remainder quota of n.

    Where a larger n would take a class's image back (the Alabama paradox, from three unequal shares on), the counts come as
    near to the shares as they can.

    Args:
        target: share of each class; `untouched` says whether its last entry is that of images which no class is given.
        seed: shuffles who gets which class; every call is shuffled anew.
    """

    def __init__(self, target: Float[Tensor, "parts"], *, seed: int, untouched: bool = False) -> None:
        self._target, self._seed = target.double() / target.double().sum(), seed
        self._given = torch.zeros(len(target), dtype=torch.int64)
        self._untouched = len(target) - 1 if untouched else None

    def __call__(self, images: int) -> Int[Tensor, "images"]:
        """The classes of so many further images, `UNTOUCHED` for those without one."""
        wanted = self._given.sum() + images
        unmet = (largest_remainder(self._target, int(wanted)) - self._given).clamp_min(0)
        # Some class would have to give an image back: those furthest ahead of their shares do with less.
        while unmet.sum() > images:
            ahead = (self._given + unmet - wanted * self._target).masked_fill(unmet == 0, -torch.inf)
            unmet[ahead.argmax()] -= 1
        self._given += unmet
        classes = torch.repeat_interleave(torch.arange(len(unmet)), unmet)
        order = torch.randperm(images, generator=torch.Generator().manual_seed(self._seed))
        self._seed += 1
        return (
            classes[order] if self._untouched is None else classes.where(classes != self._untouched, UNTOUCHED)[order]
        )
