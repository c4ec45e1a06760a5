"""The seam of a method: what it needs made first, what it learns, and the edit it makes while a model samples.

A method is named by `_target_` in `conf/mitigation/<name>.yaml`; its other keys there are its constructor's arguments. It
is fitted once per study, then calibrated, held, measured and reported by the same code whatever it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.attribution.statistics import CodeStatistics
from difflens.judges.protocol import Clip
from difflens.models.base import Batch, Update
from difflens.models.devices import placed
from difflens.models.model import DiffusionModel
from difflens.probes.base import Probe
from difflens.sae.base import SparseAutoencoder
from difflens.vocabulary import EVERY_CLASS, UNTOUCHED, Attribute, FeatureSet, PerImage, Site

Need = Literal["activations", "probe", "attribution"]
"""What the pipeline makes for a method: the site's activations of labelled images, the probe, the SAE's latents; each
brings what stands before it."""


# Not `Self`, which beartype refuses in methods of classes that it does not decorate itself.
Same = TypeVar("Same", bound="Steering")


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
        # Rounded: 0.14 · 50 is a little more than 7, and step 7 belongs to it.
        return round(self.start * steps, 6) <= step < round(self.stop * steps, 6)


def check_switch(key: str, value: object) -> None:
    """Check that a switch is true or false; else ValueError."""
    # YAML and the command line read `off`, `no` and `maybe` as words, which Python takes for true.
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, got {value!r}.")


def check_focus(focus: float, release: float, update: str) -> None:
    """Check that `focus` and `release` are shares, and that the update knows an unedited trajectory; else ValueError."""
    if not 0 <= release <= 1:
        raise ValueError(f"mitigation.release must lie in [0, 1], got {release}.")
    if not 0 <= focus < 1 or (focus and update != "asymmetric"):
        raise ValueError(
            f"mitigation.focus must lie in [0, 1), and be 0 with mitigation.update=symmetric, got {focus}."
        )


def check_update(update: str) -> None:
    """Check the word for the update; else ValueError."""
    if update not in ("asymmetric", "symmetric"):
        raise ValueError(f"mitigation.update must be asymmetric or symmetric, got {update!r}.")


def class_counts(attribute: Attribute, labels: Int[Tensor, "images"], *, key: str) -> Int[Tensor, "classes"]:
    """How many images show each class; labels of unknown class are negative.

    Raises:
        ValueError: no image shows a class, and `key` of the configuration asks for more images.
    """
    counts = torch.bincount(labels[labels >= 0], minlength=len(attribute.classes))
    if not counts.all():
        name = attribute.classes[int(counts.argmin())]
        raise ValueError(f"no learning image is {name!r} ({attribute.name}), of {len(labels)}; raise {key}.")
    return counts


class LocatedFeatures(NamedTuple):
    """The latents that drive an attribute, what they usually do, and the SAE they belong to."""

    sae: SparseAutoencoder
    features: FeatureSet
    statistics: CodeStatistics


@dataclass(frozen=True)
class Given:
    """What a method is fitted on.

    Attributes:
        attribute: the bias, or one that is to be held.
        site: where the activations were recorded.
        steps: number of denoising steps.
        maps: step → activations [N, D, H, W] of the N learning images; None where a fitted method is only read again.
        labels: class of each of these images [N], negative where it is unknown.
        probe: where the method needs it.
        located: where the method needs the attribution.
        model: under study; None where a fitted method is only read again.
        prompts: the studied ones, with a slot for a class's word; none for an unconditional model.
        unseen: those that are kept for the evaluation, likewise.
        naming: those that show whether named classes are obeyed, likewise; and `worded`, such prompts without a slot.
        target: the shares asked for, [C] or of each studied prompt [P, C]; None where a fitted method is only read again.
        words: how prompts name each class [C].
        classify: images (uint8 [n, 3, H, W]) → the class [n] that the labelling judge sees in each, negative for none.
        clip: of the study's measures, for a method that `reads_clip`.
        embeddings: of the learning images by that CLIP [N, E].
    """

    attribute: Attribute
    site: Site
    steps: int
    # Functions: stored maps are read, and images judged, for those methods alone that learn from them.
    maps: Callable[[int], Tensor] | None = None
    labels: Callable[[], Tensor] | None = None
    probe: Probe | None = None
    located: LocatedFeatures | None = None
    model: DiffusionModel | None = None
    prompts: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    naming: tuple[str, ...] = ()
    worded: tuple[str, ...] = ()
    target: Tensor | None = None
    words: tuple[str, ...] = ()
    classify: Callable[[Tensor], Tensor] | None = None
    clip: Callable[[], Clip] | None = None
    embeddings: Callable[[], Tensor] | None = None


class Method(ABC):
    """A way to move images from class to class, with the settings of its YAML file as constructor's arguments."""

    update: str = "symmetric"
    """Which noise estimate the edit serves (see `models.sampling.ddim_step`)."""

    couples: ClassVar[bool] = False
    """Whether an image depends on the others of its micro-batch: intervals then count micro-batches, not images."""

    assigns: ClassVar[bool] = True
    """Whether it moves each image to a class of its own; else it aims at the shares of all images together."""

    dial: ClassVar[bool] = True
    """Whether it can be given a strength, which is then calibrated; without one it acts fully or not at all."""

    reads_clip: ClassVar[bool] = False
    """Whether it learns from CLIP, which then is part of what decides the fit."""

    adds_up: ClassVar[bool] = False
    """Whether its edits towards several classes can act on one image at once, as `mitigation.assignment=everyone` asks."""

    at_site: ClassVar[bool] = True
    """Whether it acts at `data.site`; others act at places of their own, or at none."""

    @property
    def needs(self) -> frozenset[Need]:
        """What must be made before `learn`; nothing else is made."""
        return frozenset()

    def learn(self, given: Given) -> dict[str, Tensor]:
        """What the method learns from the model's own images, kept as an artifact; nothing by default."""
        return {}

    @abstractmethod
    def edit(self, given: Given, learnt: Mapping[str, Tensor]) -> "Steering":
        """The edit towards the classes of `given.attribute`, at the strength that changes nothing."""

    def holder(self, given: Given, learnt: Mapping[str, Tensor]) -> "SiteEdit":
        """The edit that moves an image back to its class of an attribute that is held, at strength 1.

        Raises:
            ValueError: the method has none.
        """
        raise ValueError(
            f"{type(self).__name__} cannot hold other attributes where they are; set mitigation.hold.attributes=[]."
        )


class Steering(ABC):
    """What a fitted method does to images while a model makes them (it fulfils `models.base.Attachable`).

    What is written here once for all methods: which attribute, the edited steps, and strengths per class or per prompt and
    class.

    Args:
        attribute: whose classes images are pushed towards.
        window: the edited steps.
    """

    neutral: float = 0.0
    """The strength that changes nothing."""

    held: ClassVar[tuple[Attribute, ...]] = ()
    """Attributes whose classes in the unedited image the edit must be told (`PerImage.shown`)."""

    uneven: ClassVar[bool] = False
    """Whether one micro-batch may cost more than another of the same size."""

    before_call: ClassVar[bool] = False
    """Whether it changes what the pipeline is called with, which comes too late in a call that a user makes."""

    def __init__(self, attribute: Attribute, *, window: Window) -> None:
        self.attribute, self.window = attribute, window
        self.prompts: tuple[str, ...] = ()
        self._table = torch.zeros(1, len(attribute.classes))

    @abstractmethod
    def attach(self, model: DiffusionModel, batch: Batch) -> AbstractContextManager[None]:
        """Entered around one call of the model's pipeline (see `models.base.Attachable`)."""

    def active(self, step: int, steps: int) -> bool:
        """Whether step `step` of `steps` is edited."""
        return self.window.holds(step, steps)

    @property
    def strength(self) -> Float[Tensor, "slots"]:
        """The strength of each class, or of each prompt's classes one prompt after the other."""
        return self._table[: max(1, len(self.prompts))].flatten()

    def for_prompts(self: Same, prompts: Sequence[str]) -> Same:
        """The same with strengths [P·C] of its own for each of these prompts, the classes of the first prompt first."""
        other = copy(self)
        # A shallow copy: SAE, probe and statistics are shared, not held twice.
        other.prompts = tuple(prompts)
        return other

    def with_strength(self: Same, strength: Float[Tensor, "slots"]) -> Same:
        """The same at another strength per class, or per prompt and class.

        An image of a prompt that has no strength of its own gets, per class, the mean over those that are not neutral.
        """
        other = copy(self)
        table = strength.unflatten(0, (max(1, len(self.prompts)), -1))
        if self.prompts:
            # Neutral means that nobody was pushed there; in the mean it would weaken the edit of unseen prompts.
            used = (table != self.neutral).to(table)
            usual = self.neutral + ((table - self.neutral) * used).sum(0) / used.sum(0).clamp_min(1)
            table = torch.cat([table, usual[None]])
        other._table = table.float()
        return other

    def strength_of(self, images: PerImage) -> Float[Tensor, "images"]:
        """The strength of each image's class, under its prompt; of class 0 where it has no class."""
        table = self._table.to(images.target.device)
        rows = torch.zeros_like(images.target)
        if self.prompts:
            assert images.prompt is not None
            number = {prompt: row for row, prompt in enumerate(self.prompts)}
            # The row after the last prompt is that of prompts without strengths of their own.
            rows = torch.tensor([number.get(text, len(number)) for text in images.prompt], device=rows.device)
        # Words such as `UNTOUCHED` are negative, and as indices would count from the end.
        return table[rows, images.target.clamp_min(0)]


class SiteEdit(Steering):
    """A change of the activations at one site, (h, step, images) → h′ (it fulfils `models.base.Edit`).

    It reads coordinates z off the activations (an SAE's codes, or the activations themselves), changes them, and writes the
    change back. What is written here once for all methods of this kind: images that nothing may touch, edits towards all
    classes at once, and edits that share their coordinates with those that hold.

    Args:
        attribute: whose classes images are pushed towards.
        site: where.
        update: `asymmetric` or `symmetric`.
        window: the edited steps.
        gate: a probe of the attribute, whose reading weakens the edit.
    """

    def __init__(
        self, attribute: Attribute, *, site: Site, update: str, window: Window, gate: Probe | None = None
    ) -> None:
        check_update(update)
        super().__init__(attribute, window=window)
        self.site, self.gate, self.focus, self.release = site, gate, 0.0, 1.0
        self.update: Update = update  # type: ignore[assignment]

    def attach(self, model: DiffusionModel, batch: Batch) -> AbstractContextManager[None]:
        """See `Steering.attach`."""
        return model.editing(self, batch.images)

    def __call__(
        self, h: Float[Tensor, "images channels height width"], step: int, images: PerImage
    ) -> Float[Tensor, "images channels height width"]:
        """The edited activations, on the device where `h` lies; rows that nothing may touch come back bit for bit."""
        return self.write(h, self.delta(self.read(h), h, step, images), images.target != UNTOUCHED)

    def dose(self, images: PerImage) -> Float[Tensor, "images"]:
        """How far from neutral the strength of each image's class lies, in multiples of the difference between classes."""
        return (self.strength_of(images) - self.neutral).abs()

    def delta(self, z: Tensor, h: Tensor, step: int, images: PerImage) -> Tensor:
        """Δz of all images; towards every class at once, each class's change starts from what the former ones made."""
        # Read once, before anything is changed: the gate must not answer to the edit itself.
        shown, every = self.shown(h, step), images.target == EVERY_CLASS
        found = self._towards(z, step, images.target, images, shown)
        if not bool(every.any()):
            return found
        # One class after the other: a latent of two classes is scaled by both factors, as when all are scaled at once.
        total = torch.zeros_like(z)
        for index in range(len(self.attribute.classes)):
            own = torch.where(every, index, UNTOUCHED)
            total = total + self._towards(z + total, step, own, images, shown)
        return torch.where(every[:, None, None, None], total, found)

    def _towards(self, z: Tensor, step: int, target: Tensor, images: PerImage, shown: Tensor | None) -> Tensor:
        strength = self.strength_of(PerImage(target, prompt=images.prompt)).to(z.device)
        change = self.change(z, step, target.clamp_min(0), strength, shown)
        return torch.where((target >= 0)[:, None, None, None], change, 0.0)

    def shown(
        self, h: Float[Tensor, "images channels height width"], step: int
    ) -> Float[Tensor, "images classes"] | None:
        """What the gate reads in each image, None without one."""
        return None if self.gate is None else placed(self.gate, h.device)(h, step).softmax(-1)

    def beside(self, others: Sequence["SiteEdit"]) -> tuple["SiteEdit", ...]:
        """This edit and the others, all reading the same coordinates."""
        return (self, *others)

    def limit(self, z: Tensor, delta: Tensor) -> Tensor:
        """A sum of changes, kept where the coordinates have a meaning; unchanged by default."""
        return delta

    @abstractmethod
    def read(self, h: Float[Tensor, "images channels height width"]) -> Tensor:
        """The coordinates z [n, L, …] of activations."""

    @abstractmethod
    def change(
        self,
        z: Tensor,
        step: int,
        target: Int[Tensor, "images"],
        strength: Float[Tensor, "images"],
        shown: Float[Tensor, "images classes"] | None,
    ) -> Tensor:
        """Δz that pushes every image towards its target class with its strength."""

    @abstractmethod
    def write(
        self, h: Float[Tensor, "images channels height width"], delta: Tensor, touched: Tensor
    ) -> Float[Tensor, "images channels height width"]:
        """The activations with Δz; those of images that are not `touched` [n], and where Δz is zero, bit for bit."""


class MapEdit(SiteEdit):
    """A change of the activations themselves, with nothing read off them."""

    def read(self, h: Float[Tensor, "images channels height width"]) -> Tensor:
        """The activations themselves."""
        return h.float()

    def write(
        self, h: Float[Tensor, "images channels height width"], delta: Tensor, touched: Tensor
    ) -> Float[Tensor, "images channels height width"]:
        """See `SiteEdit.write`."""
        # Only where something changes: adding zero would already lose the sign of -0.0.
        moved = touched & (delta != 0).flatten(1).any(1)
        return torch.where(moved[:, None, None, None], (h.float() + delta).to(h.dtype), h)
