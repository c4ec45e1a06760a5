"""Two methods on the same images: what each did to every image, and how sure one is that one did it better.

Same ids, same noise, same assigned classes: all comparisons are of pairs (METHOD section 7).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest, norm, t
from torch import Tensor

from difflens.metrics.functional import maximum_discrepancy

DRAWS = 2000
"""Bootstrap samples."""

OTHER = "other/"
"""Before the names of other attributes among an outcome's tensors."""


@dataclass(frozen=True)
class Outcomes:
    """What one method did to each image, read by the scoring judge.

    Attributes:
        image_ids: ids [N].
        target: the class that each image was pushed towards [N], negative where it was left alone.
        shown: the class that it shows afterwards [N], negative without a face.
        flipped: other attribute → whether its class changed [N].
        clip_i: cosine with the same id's unmitigated image [N].
    """

    image_ids: Int[Tensor, "images"]
    target: Int[Tensor, "images"]
    shown: Int[Tensor, "images"]
    flipped: Mapping[str, Bool[Tensor, "images"]]
    clip_i: Float[Tensor, "images"]

    @property
    def edited(self) -> Bool[Tensor, "images"]:
        """Images that the method was to change."""
        # Other negative numbers are targets too: an image pushed towards every class at once has none of its own.
        return self.target != -1

    @property
    def reached(self) -> Bool[Tensor, "images"]:
        """Images that show the class they were pushed towards."""
        # Both are negative where there is nothing to reach or to show, so an equal sign alone could count those.
        return (self.target >= 0) & (self.shown == self.target)

    @property
    def nothing_else(self) -> Bool[Tensor, "images"]:
        """Images in which no other attribute changed."""
        changed = torch.stack([*self.flipped.values()]) if self.flipped else torch.zeros(1, len(self.shown))
        return ~changed.bool().any(0)

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, to be stored."""
        flips = {f"{OTHER}{name}": values for name, values in self.flipped.items()}
        own = {name: getattr(self, name) for name in ("image_ids", "target", "shown", "clip_i")}
        return {**own, **flips}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Outcomes":
        """What `tensors` gave."""
        flips = {name.removeprefix(OTHER): each.bool() for name, each in tensors.items() if name.startswith(OTHER)}
        return cls(tensors["image_ids"], tensors["target"], tensors["shown"], flips, tensors["clip_i"])


@dataclass(frozen=True)
class Comparison:
    """One method less the reference on the same images: a difference, its interval, and a p-value where one was computed."""

    difference: float
    low: float
    high: float
    p: float | None = None


def bootstrap(statistic: Float[Tensor, "draws"], observed: float) -> tuple[float, float]:
    """A 95 % interval of a statistic from its bootstrap draws: the percentile interval and its mirror image together.

    Alone, either misses the truth too often where the statistic is biased, as distances near zero are.
    """
    low, high = torch.quantile(statistic.double(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return min(low, 2 * observed - high), max(high, 2 * observed - low)


def resamples(
    n: int, *, group: int = 1, first: int = 0, draws: int = DRAWS, seed: int = 0
) -> Int[Tensor, "draws picked"]:
    """Positions of images drawn with replacement, in whole groups of `group` in a row where a method couples those.

    Args:
        n: images.
        group: images of a group; at either end one may be short, and is then drawn with its own images over again.
        first: how many images stand before these, by which groups are counted.
        draws: resamples.
        seed: of the draws.
    """
    generator, before = torch.Generator().manual_seed(seed), first % group
    groups = _groups_of(n, group=group, first=first)
    drawn = torch.randint(groups, (draws, groups), generator=generator)
    start = (drawn * group - before).clamp_min(0)
    size = ((drawn + 1) * group - before).clamp_max(n) - start
    return (start[:, :, None] + torch.arange(group) % size[:, :, None]).flatten(1)


def _groups_of(n: int, *, group: int, first: int) -> int:
    """How many groups hold these n images, of which so many stand before the first."""
    return -(-(n + first % group) // group)


def _of_few(parts: Sequence[tuple[Tensor, Tensor]], *, group: int) -> list[float]:
    """What the deviations of each prompt's resamples must be multiplied by where it has few groups; [] where one has one.

    Resamples of G groups vary by √((G − 1)/G) too little, and ends that suit a normal distribution are too near (Student).
    """
    groups = [_groups_of(len(rows), group=group, first=int(rows[0])) for rows, _ in parts]
    # One group alone says nothing of how groups vary.
    if min(groups) < 2 or group == 1:
        return [1.0] * len(groups) if min(groups) > 1 else []
    heavier = t.ppf(0.975, sum(groups) - len(groups)) / norm.ppf(0.975)
    return [float(heavier * math.sqrt(each / (each - 1))) for each in groups]


def shares_of(
    shown: Int[Tensor, "images"], classes: int, rows: Int[Tensor, "draws picked"]
) -> Float[Tensor, "draws classes"]:
    """The classes' shares of every resample; images without a face count in none."""
    found = []
    # In parts: 2,000 draws of 10,000 images, one-hot in double precision, take 160 MB for each class.
    for part in rows.split(256):
        labels = shown[part]
        # `one_hot` knows no negative class; images without a face are taken as class 0 and then erased.
        hits = torch.nn.functional.one_hot(labels.clamp_min(0), classes).double() * (labels >= 0)[..., None]
        found.append(hits.sum(1) / hits.sum((1, 2)).clamp_min(1)[:, None])
    return torch.cat(found)


def discrepancies(
    shown: Int[Tensor, "images"], target: Float[Tensor, "classes"], rows: Int[Tensor, "draws picked"]
) -> Float[Tensor, "draws"]:
    """Hard FD of every resample."""
    return (shares_of(shown, len(target), rows) - target.double()).norm(dim=1)


def fd_interval(
    shown: Int[Tensor, "images"],
    target: Float[Tensor, "*prompts classes"],
    *,
    prompt: Int[Tensor, "images"] | None = None,
    group: int = 1,
    draws: int = DRAWS,
) -> tuple[float, float]:
    """A 95 % bootstrap interval of hard FD, over images or over groups of `group`: FD ± the quantile of ‖p* − p‖.

    The shares p lie within that distance of the true ones as often as asked for, so FD does not lie farther off. The usual
    percentile interval never holds the 0 of a fair sampler, whose FD is always measured above it.

    Args:
        shown: the class of each image, negative without a face.
        target: the shares asked for [C], or those of every prompt [P, C].
        prompt: which prompt each image is of: FD is then the mean of every prompt's own, and images are drawn within them.
        group: images in a row that a method couples.
        draws: bootstrap samples.
    """
    distance = torch.zeros(draws, dtype=torch.float64)
    parts = _by_prompt(len(shown), target, prompt)
    found = mean_discrepancy(shown, target, prompt)
    largest = sum(float(maximum_discrepancy(wanted)) for _, wanted in parts) / len(parts)
    wider = _of_few(parts, group=group)
    if not wider:
        return 0.0, largest
    for number, ((rows, wanted), factor) in enumerate(zip(parts, wider, strict=True)):
        own = shown[rows]
        observed = shares_of(own, len(wanted), torch.arange(len(own))[None])
        if bool((observed == 0).any()):
            # No resample holds a class that no image shows, rare as it may be: shares are drawn given the counts (Jeffreys).
            drawn, factor = _posterior_shares(observed[0] * -(-int((own >= 0).sum()) // group), draws, seed=number), 1.0
        else:
            picked = resamples(len(own), group=group, first=int(rows[0]), draws=draws, seed=number)
            drawn = shares_of(own, len(wanted), picked)
        distance += factor * (drawn - observed).norm(dim=1) / len(parts)
    radius = float(torch.quantile(distance, 0.95))
    return max(0.0, found - radius), min(found + radius, largest)


def _posterior_shares(counts: Float[Tensor, "classes"], draws: int, *, seed: int = 0) -> Float[Tensor, "draws classes"]:
    drawn = np.random.default_rng(seed).dirichlet(counts.numpy() + 0.5, size=draws)
    return torch.from_numpy(drawn)


def _by_prompt(images: int, target: Tensor, prompt: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """The positions of each prompt's images, and its target."""
    if prompt is None:
        return [(torch.arange(images), target.double())]
    targets = target.double().expand(int(prompt.max()) + 1, -1)
    return [((prompt == number).nonzero()[:, 0], wanted) for number, wanted in enumerate(targets)]


def mean_discrepancy(
    shown: Int[Tensor, "images"], target: Float[Tensor, "*prompts classes"], prompt: Int[Tensor, "images"] | None
) -> float:
    """Hard FD, the mean of every prompt's own; arguments are those of `fd_interval`."""
    parts = _by_prompt(len(shown), target, prompt)
    found = [float(discrepancies(shown[rows], wanted, torch.arange(len(rows))[None])) for rows, wanted in parts]
    return sum(found) / len(found)


def compare_fd(
    one: Outcomes,
    other: Outcomes,
    target: Float[Tensor, "*prompts classes"],
    *,
    prompt: Int[Tensor, "images"] | None = None,
    group: int = 1,
    draws: int = DRAWS,
) -> Comparison:
    """Hard FD of one method less that of another, with a paired bootstrap interval; arguments are those of `fd_interval`.

    Raises:
        ValueError: the images are not the same.
    """
    if not torch.equal(one.image_ids, other.image_ids):
        raise ValueError("two methods are compared on the same images, and these have different ids.")
    observed, drawn = 0.0, torch.zeros(draws, dtype=torch.float64)
    parts = _by_prompt(len(one.shown), target, prompt)
    wider = _of_few(parts, group=group)
    for number, ((rows, wanted), factor) in enumerate(zip(parts, wider or [1.0] * len(parts), strict=True)):
        # The same draws for both methods: what their images have in common cancels in the difference.
        picked = resamples(len(rows), group=group, first=int(rows[0]), draws=draws, seed=number)
        whole = torch.arange(len(rows))[None]
        for sign, shown in ((1, one.shown[rows]), (-1, other.shown[rows])):
            own = float(discrepancies(shown, wanted, whole))
            drawn += sign * (own + factor * (discrepancies(shown, wanted, picked) - own)) / len(parts)
            observed += sign * own / len(parts)
    return Comparison(observed, *(bootstrap(drawn, observed) if wider else (-math.inf, math.inf)))


def compare_hits(one: Bool[Tensor, "images"], other: Bool[Tensor, "images"], *, group: int = 1) -> Comparison:
    """Difference of two shares of the same images, its interval, and the exact test of those that differ (McNemar 1947).

    Where a method couples `group` images in a row, these are no independent cases: see `_compare_groups`.
    """
    difference = one.double() - other.double()
    if group > 1:
        return _compare_groups(difference, group=group)
    observed = float(difference.mean())
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    # Exact and not by χ²: images in which two good methods differ may be few.
    p = float(binomtest(only_one, only_one + only_other, 0.5).pvalue) if only_one + only_other else 1.0
    # Or none, which no resample would show either: shares are drawn given the counts (Jeffreys).
    counts = torch.tensor([only_one, only_other, len(one) - only_one - only_other], dtype=torch.float64)
    drawn = _posterior_shares(counts, DRAWS)
    low, high = torch.quantile(drawn[:, 0] - drawn[:, 1], torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Comparison(observed, min(low, observed), max(high, observed), p)


def _compare_groups(difference: Float[Tensor, "images"], *, group: int) -> Comparison:
    """A mean difference of images coupled in groups: Student's interval of their sums, and a randomisation test.

    Not by bootstrap: of four groups whose differences have one sign by chance, no resample has the other.
    """
    sums = torch.stack([part.sum() for part in difference.split(group)])
    observed, reach = float(difference.mean()), math.inf
    if len(sums) > 1:
        reach = float(t.ppf(0.975, len(sums) - 1) * sums.std() * math.sqrt(len(sums)) / len(difference))
    # p-value of the sum if each group had either sign alike; what rounding leaves of a tie is a tie.
    signs = torch.randint(2, (10_000, len(sums)), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    extreme = (signs @ sums).abs() >= sums.sum().abs() - 1e-9
    return Comparison(observed, observed - reach, observed + reach, float((extreme.sum() + 1) / (len(signs) + 1)))


def compare_means(
    one: Float[Tensor, "images"], other: Float[Tensor, "images"], *, group: int = 1, draws: int = DRAWS
) -> Comparison:
    """Difference of two means over the same images, with a paired bootstrap interval and its two-sided p-value.

    Where a method couples `group` images in a row: see `_compare_groups`.
    """
    difference = (one - other).double()
    if group > 1:
        return _compare_groups(difference, group=group)
    observed = float(difference.mean())
    drawn = difference[resamples(len(one), draws=draws)].mean(1)
    # The share of draws on the other side of zero; never 0, since draws are finite.
    tail = min(float((drawn <= 0).double().mean()), float((drawn >= 0).double().mean()))
    return Comparison(observed, *bootstrap(drawn, observed), min(1.0, 2 * max(tail, 1 / len(drawn))))


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted so that the chance of any false claim among them stays below the level (Holm 1979)."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        # Never below an earlier one: a larger p-value may not come out as the stronger claim.
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = largest
    return adjusted
