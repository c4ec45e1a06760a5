"""How strongly: the smallest strength per class at which the realised shares meet those that were assigned."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.vocabulary import UNTOUCHED


@dataclass(frozen=True)
class Dose:
    """One measured point.

    Attributes:
        strength: per class.
        success: share of the images pushed towards each class that show it; NaN where none was pushed.
        shares: the classes' shares of all images.
        held: share of all images that show a class and are meant to: unlike `shares`, no failure of another class adds to it.
    """

    strength: Float[Tensor, "classes"]
    success: Float[Tensor, "classes"]
    shares: Float[Tensor, "classes"]
    held: Float[Tensor, "classes"]


@dataclass(frozen=True)
class Calibration:
    """The chosen strength per class, whether each class met its share, and every dose measured on the way."""

    strength: Float[Tensor, "classes"]
    met: tuple[bool, ...]
    doses: tuple[Dose, ...]


def read_dose(
    strength: Float[Tensor, "slots"],
    *,
    before: Int[Tensor, "images"],
    after: Int[Tensor, "images"],
    targets: Int[Tensor, "images"],
    groups: Int[Tensor, "images"],
    classes: int,
    by_share: bool = False,
) -> Dose:
    """What an edit did, for every class of every group of images by itself: group g's class c has the slot g·classes + c.

    Shares are of the images with a face. One that loses its face to the edit succeeds in no class and is held by none.

    Args:
        strength: it acted with.
        before: class of each image without it, negative where it shows no face.
        after: class with it, likewise.
        targets: class each image was pushed towards, `UNTOUCHED` where none.
        groups: of each image, from 0; every one has images.
        classes: number of classes.
        by_share: the edit gives no image a class of its own: what is held is what is shown.
    """
    moved = targets != UNTOUCHED
    seen = after >= 0
    # Images that nobody pushed must keep their class: strays that end in a class do not count for it.
    right = seen & (after == torch.where(moved, targets, before))

    def count(labels: Tensor, rows: Tensor) -> Tensor:
        return torch.bincount((groups * classes + labels)[rows], minlength=len(strength)).double()

    def size(rows: Tensor) -> Tensor:
        faces = torch.bincount(groups[rows], minlength=len(strength) // classes)
        return faces.clamp_min(1).double().repeat_interleave(classes)

    # 0 / 0 is meant: NaN says that nobody was pushed towards the class.
    success = count(targets, moved & right) / count(targets, moved)
    if by_share:
        right = seen
    # A face that the edit has lost stays below the line, or destroying faces would pay.
    shares, held = count(after, seen) / size(seen), count(after, right) / size(seen | (before >= 0))
    return Dose(strength.clone(), success, shares, held)


def assigned_shares(
    targets: Int[Tensor, "images"], before: Int[Tensor, "images"], groups: Int[Tensor, "images"], *, classes: int
) -> Float[Tensor, "slots"]:
    """The shares (float64) that an edit which always succeeds makes of each group: what a calibration can ask for.

    Args:
        targets: class each image is pushed towards, `UNTOUCHED` where none.
        before: class of each image without an edit, negative where it shows no face; such an image counts only if pushed.
        groups: of each image, from 0; every one has images.
        classes: number of classes.
    """
    # What was drawn, not what was asked for: of few images even a perfect edit misses the target (METHOD section 6).
    after = torch.where(targets != UNTOUCHED, targets, before)
    seen, slots = after >= 0, (int(groups.max()) + 1) * classes
    counts = torch.bincount((groups * classes + after)[seen], minlength=slots).double().view(-1, classes)
    return (counts / counts.sum(1, keepdim=True).clamp_min(1)).flatten()


def calibrate(
    measure: Callable[[Float[Tensor, "classes"]], Dose],
    target: Float[Tensor, "classes"],
    *,
    neutral: float,
    first: float,
    largest: float,
    tolerance: float,
    refinements: int,
    images: int,
    margin: float = 1.0,
    together: bool = False,
) -> Calibration:
    """Bracket, then bisect, all classes at once: a measurement serves each of them (METHOD section 6).

    A class whose share no strength meets gets the strength that came nearest to it.

    Args:
        measure: generates the calibration images at a strength per class and reads their classes.
        target: shares that the images were assigned (see `assigned_shares`).
        neutral: the strength that changes nothing.
        first: how far from neutral the first strength tried lies; doubled until the share is met.
        largest: how far from neutral the strongest edit allowed lies.
        tolerance: a class meets its share where the images it holds reach (1 − tolerance) times that share; where that
            allows for more than half an image and less than one, one may be missed.
        refinements: bisections after bracketing.
        images: of which shares are taken.
        margin: the strength found is taken this many times as far from neutral, but never beyond `largest`: what just
            suffices for these images is too weak for about half of all other sets.
        together: one strength serves all classes, and suffices where each meets its share.

    Raises:
        ValueError: not 0 < first ≤ largest, or `margin` is below 1.
    """
    if not 0 < first <= largest:
        raise ValueError(f"calibration needs 0 < first ≤ largest, got {first}, {largest}.")
    if margin < 1:
        raise ValueError(f"calibration needs a margin of at least 1, got {margin}.")
    # 3 % of 32 images are 0.96: rounded down, all four classes of 128 images would have to succeed without exception.
    one = (target * images * tolerance).round() == 1
    wanted = torch.where(
        one, torch.minimum(target * (1 - tolerance), target - (1 + 1e-6) / images), target * (1 - tolerance)
    )
    search = _Search(measure, wanted, neutral=neutral, first=neutral + first, together=together)
    search.bracket(neutral + largest)
    # Who is pushed does not depend on the strength, so the first dose tells.
    pushed = ~search.doses[0].success.isnan()
    # One strength is that of every class, whether or not an image is pushed there.
    pushed = pushed.any().expand_as(pushed) if together else pushed
    # A dose samples all calibration images: none is spent where no class has a bracket to refine.
    for _ in range(refinements if (search.done & pushed).any() else 0):
        search.bisect()
    enough = (neutral + margin * (search.high - neutral)).clamp_max(neutral + largest)
    chosen = torch.where(search.done, enough, search.best())
    # Where nobody was pushed nothing was measured, whatever the search passed through.
    strength = torch.where(pushed, chosen, torch.full_like(chosen, neutral))
    return Calibration(strength, tuple(bool(d) for d in search.done), tuple(search.doses))


class _Search:
    """Per class, a strength too weak (`low`), and one strong enough or the last one tried (`high`)."""

    def __init__(
        self, measure: Callable[[Tensor], Dose], wanted: Tensor, *, neutral: float, first: float, together: bool
    ) -> None:
        self.measure, self.wanted, self.neutral, self.together = measure, wanted, neutral, together
        self.doses: list[Dose] = []
        self.low = torch.full((len(wanted),), neutral, dtype=torch.float64)
        self.high = torch.full((len(wanted),), first, dtype=torch.float64)
        self.done = self._met(self.high)

    def bracket(self, largest: float) -> None:
        """Double the strength of the classes that need it until all meet their share or the largest is reached."""
        while not self.done.all() and bool((self.high[~self.done] < largest).any()):
            doubled = (self.neutral + 2 * (self.high - self.neutral)).clamp_max(largest)
            self.low = torch.where(self.done, self.low, self.high)
            self.high = torch.where(self.done, self.high, doubled)
            # A class that has its bracket keeps it while the others, measured in the same images, go on.
            self.done = self.done | self._met(self.high)

    def bisect(self) -> None:
        """Try the middle of every bracket."""
        # Classes without a bracket go along at their last strength: one measurement serves all.
        middle = torch.where(self.done, (self.low + self.high) / 2, self.high)
        enough = self._met(middle)
        self.high = torch.where(self.done & enough, middle, self.high)
        self.low = torch.where(self.done & ~enough, middle, self.low)

    def best(self) -> Tensor:
        """Per class, the first strength that held most images: too strong an edit can do less than a weaker one."""
        held = torch.stack([dose.held for dose in self.doses])
        # Of one strength for all, that at which the class that lacks most lacks least.
        held = (held - self.wanted).amin(1, keepdim=True).expand_as(held) if self.together else held
        return torch.stack([dose.strength for dose in self.doses]).gather(0, held.argmax(0)[None])[0]

    def _met(self, strength: Tensor) -> Tensor:
        self.doses.append(self.measure(strength))
        # By what is held: shares would also rise with images that stray from another class.
        found = (self.doses[-1].held >= self.wanted) | self.doses[-1].success.isnan()
        # A class by itself could give way to a weaker strength, and the others would lose with it what they have reached.
        return found.all().expand_as(found) if self.together else found
