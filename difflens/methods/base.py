"""The interface of a mitigation method: an edit at a site that can be made stronger or weaker per class."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from difflens.models.base import Update
from difflens.vocabulary import Attribute, Site


@dataclass(frozen=True)
class Window:
    """The edited share of the denoising trajectory: steps s with start ≤ s/steps < stop; step 0 is the noisiest."""

    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(f"mitigation.window needs 0 ≤ start < stop ≤ 1, got {self.start} to {self.stop}.")

    def holds(self, step: int, steps: int) -> bool:
        """Whether a step lies inside."""
        return self.start * steps <= step < self.stop * steps


class Mitigation(ABC):
    """An edit (h, step, targets) → h′ whose strength per class can be set (it fulfils `models.base.Edit`)."""

    def __init__(self, attribute: Attribute, *, site: Site, update: str, window: Window) -> None:
        if update not in ("asymmetric", "symmetric"):
            raise ValueError(f"mitigation.update must be asymmetric or symmetric, got {update!r}.")
        self.attribute, self.site, self.window = attribute, site, window
        self.update: Update = update  # type: ignore[assignment]

    def active(self, step: int, steps: int) -> bool:
        """Whether step `step` of `steps` is edited."""
        return self.window.holds(step, steps)

    @property
    def neutral(self) -> float:
        """The strength that changes nothing."""
        return 0.0

    @property
    def held(self) -> tuple[Attribute, ...]:
        """Other attributes whose classes in the unedited image the method must be told, see `aims`."""
        return ()

    def aims(
        self, targets: Int[Tensor, "images"], shown: Int[Tensor, "images held"], prompts: Sequence[str] | None
    ) -> Int[Tensor, "images"]:
        """What the edit is called with: the target class of each image and whatever else the method must know of it.

        Args:
            targets: target class, `UNTOUCHED` for images that stay as they are.
            shown: the class of each held attribute in the unedited image, negative where it is not known.
            prompts: the prompt of each image, None for a model without prompts.
        """
        return targets

    @abstractmethod
    def with_strength(self, strength: Float[Tensor, "classes"]) -> "Mitigation":
        """The same method at another strength per class."""

    @abstractmethod
    def __call__(
        self, h: Float[Tensor, "images channels height width"], step: int, targets: Int[Tensor, "images"]
    ) -> Float[Tensor, "images channels height width"]:
        """The edited activations, on the device where `h` lies; rows whose target is `UNTOUCHED` come back bit for bit."""
