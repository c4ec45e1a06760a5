"""The words of the project as types: sites, attributes, plans, scores and feature sets."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Negative, so that none can be a class, and all different: targets and labels meet in the same tensors.
UNTOUCHED = -1
"""Target of an image that no mitigation may change."""

NO_FACE = -2
"""Label of an image in which the judge finds no face."""

UNNAMED = -3
"""Label of an image whose prompt names no class."""

EVERY_CLASS = -4
"""Target of an image that is edited with the strengths of all classes."""

Branch = Literal["none", "cond", "uncond", "both"]
Where = Literal["output", "input", "update"]


@dataclass(frozen=True)
class Site:
    """Where activations are read and edited.

    Args:
        module: dotted path inside the denoiser, such as `mid_block`.
        tensor: the module's `output`, its `input`, or its `update` (output − input).
        branch: of classifier-free guidance: `cond`, `uncond`, or `both` (the two maps of an image one above the other,
            uncond first, so that it has twice the height); `none` for unconditional models.
    """

    module: str = "mid_block"
    tensor: Where = "output"
    branch: Branch = "none"


@dataclass(frozen=True)
class Attribute:
    """A bias under study: its name, as judges know it, and its ordered classes; `parts` are those of a `product`."""

    name: str
    classes: tuple[str, ...]
    parts: tuple["Attribute", ...] = ()

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"attribute {self.name!r} needs at least two distinct classes, got {self.classes}.")

    @property
    def components(self) -> tuple["Attribute", ...]:
        """The attributes that judges know: the parts of a product, else the attribute itself."""
        return self.parts or (self,)

    def index(self, name: str) -> int:
        """Position of a class (ValueError: the attribute has no such class)."""
        if name not in self.classes:
            raise ValueError(f"attribute {self.name!r} has no class {name!r}; its classes are {list(self.classes)}.")
        return self.classes.index(name)

    def target(self, shares: Mapping[str, Any] | None) -> Float[Tensor, "classes"]:
        """The target distribution q (float64), uniform if `shares` is None.

        Classes left out share evenly what the others leave. A product takes shares of its classes, or part → class → share,
        and is then their product; parts left out are uniform.

        Raises:
            ValueError: a class is unknown or left nothing, a share is negative, or the shares do not sum to 1.
        """
        if shares is None:
            return torch.full((len(self.classes),), 1 / len(self.classes), dtype=torch.float64)
        if self.parts and set(shares) <= {part.name for part in self.parts}:
            q = torch.ones(1, dtype=torch.float64)
            for part in self.parts:
                # The last part varies fastest, as in the classes that `product` makes.
                q = torch.outer(q, part.target(shares.get(part.name))).flatten()
            return q
        for name in shares:
            self.index(name)
        missing = [name for name in self.classes if name not in shares]
        given = {name: float(share) for name, share in shares.items()}
        left = 1 - sum(given.values())
        if missing and left <= 1e-6:
            raise ValueError(f"the target of {self.name!r} lacks a share for {missing}, and the others leave none.")
        given |= dict.fromkeys(missing, left / max(1, len(missing)))
        q = torch.tensor([given[name] for name in self.classes], dtype=torch.float64)
        if (q < 0).any() or abs(float(q.sum()) - 1) > 1e-6:
            raise ValueError(f"the target of {self.name!r} must be non-negative and sum to 1, got {dict(shares)}.")
        return q


def product(parts: Sequence[Attribute]) -> Attribute:
    """Its classes are all combinations of the parts' classes, such as `female+old`, the last varying fastest."""
    classes = ("+".join(names) for names in itertools.product(*(part.classes for part in parts)))
    return Attribute("+".join(part.name for part in parts), tuple(classes), tuple(parts))


@dataclass(frozen=True)
class PerImage:
    """What an edit is told of each image.

    Args:
        target: the class it is pushed towards, `UNTOUCHED` where nothing may change, `EVERY_CLASS` for all at once.
        shown: attribute → its class in the unedited image, negative where it is not known; for attributes that are held.
        prompt: of each image, None for a model without prompts.
    """

    target: Int[Tensor, "images"]
    shown: Mapping[str, Int[Tensor, "images"]] = field(default_factory=dict)
    prompt: tuple[str, ...] | None = None

    def take(self, rows: Int[Tensor, "rows"]) -> "PerImage":
        """What is told of the images at these positions."""
        shown = {name: labels[rows] for name, labels in self.shown.items()}
        prompt = None if self.prompt is None else tuple(self.prompt[row] for row in rows.tolist())
        return PerImage(self.target[rows], shown, prompt)

    def to(self, device: torch.device | str) -> "PerImage":
        """The same with its numbers on a device."""
        shown = {name: labels.to(device) for name, labels in self.shown.items()}
        return replace(self, target=self.target.to(device), shown=shown)


@dataclass(frozen=True)
class GenerationPlan:
    """Which images to generate: each image's noise depends on (base seed, image id) and on nothing else."""

    base_seed: int
    image_ids: Int[Tensor, "images"]
    targets: Int[Tensor, "images"] | None = None
    """Target class per image for a mitigation, `UNTOUCHED` where it must not act."""
    prompts: tuple[str, ...] | None = None
    """Prompt per image for a text-to-image model, None for an unconditional one."""
    shown: Mapping[str, Int[Tensor, "images"]] = field(default_factory=dict)
    """Attribute → the class that each unedited image shows, for attributes that a method is to hold."""

    def __post_init__(self) -> None:
        for name, values in (("targets", self.targets), ("prompts", self.prompts), *self.shown.items()):
            if values is not None and len(values) != len(self.image_ids):
                raise ValueError(f"a plan of {len(self.image_ids)} images needs as many {name}, got {len(values)}.")

    def part(self, start: int, stop: int) -> "GenerationPlan":
        """The plan of the images from `start` to before `stop`."""
        return self.take(torch.arange(len(self.image_ids))[start:stop])

    def take(self, rows: Int[Tensor, "rows"]) -> "GenerationPlan":
        """The plan of the images at these positions."""
        targets = None if self.targets is None else self.targets[rows]
        prompts = None if self.prompts is None else tuple(self.prompts[row] for row in rows.tolist())
        shown = {name: labels[rows] for name, labels in self.shown.items()}
        return GenerationPlan(self.base_seed, self.image_ids[rows], targets, prompts, shown)

    def towards(
        self, targets: Int[Tensor, "images"], shown: Mapping[str, Int[Tensor, "images"]] | None = None
    ) -> "GenerationPlan":
        """The same images with these targets, and with what they show of the attributes to be held."""
        return replace(self, targets=targets, shown=shown or {})

    def per_image(self) -> PerImage:
        """What an edit is told of these images (ValueError: they have no targets)."""
        if self.targets is None:
            raise ValueError("an edit needs plan.targets: one class per image, UNTOUCHED where it must not act.")
        return PerImage(self.targets, self.shown, self.prompts)


@dataclass(frozen=True)
class FeatureScores:
    """Attribution scores of every latent for every class at every step: [classes, steps, latents], float32."""

    attribute: Attribute
    scores: Float[Tensor, "classes steps latents"]

    def total(self) -> Float[Tensor, "classes latents"]:
        """Scores summed over steps."""
        return self.scores.sum(1)


@dataclass(frozen=True)
class FeatureSet:
    """The latents selected for each class, strongest first."""

    attribute: Attribute
    latents: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.latents) != set(self.attribute.classes):
            raise ValueError(
                f"a feature set of {self.attribute.name!r} needs latents for each of {self.attribute.classes}."
            )
