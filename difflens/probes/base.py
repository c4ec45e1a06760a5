"""What every probe is: one classifier per denoising step on the flattened activations; how it is fitted and saved."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from difflens.store.targets import saved_class
from difflens.vocabulary import Attribute


class Probe(nn.Module, ABC):
    """Reads an attribute's classes off the activations [N, D, H, W] of a step; its buffers are all that it learnt."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Number of denoising steps."""

    @abstractmethod
    def settings(self) -> Mapping[str, int]:
        """The constructor's arguments."""

    def affine_layer(self, step: int) -> tuple[Float[Tensor, "classes features"], Float[Tensor, "classes"]] | None:
        """Weights and biases where the logits are affine in the activations; else None.

        With them attribution has a closed form, without them it goes by autograd.
        """
        return None

    @abstractmethod
    def forward(self, h: Float[Tensor, "images channels height width"], step: int) -> Float[Tensor, "images classes"]:
        """Logits of the attribute's classes at `step`."""


Fitted = TypeVar("Fitted", bound=Probe)


class ProbeFit(NamedTuple):
    """A fitted probe and its held-out accuracy per step [steps] (float64), with the images per class it was fitted on."""

    probe: Probe
    accuracy: Float[Tensor, "steps"]
    images_per_class: int


def balanced_split(
    labels: Int[Tensor, "images"], attribute: Attribute, *, held_out: float, seed: int
) -> tuple[Int[Tensor, "train"], Int[Tensor, "test"]]:
    """Positions with equal numbers per class, split into training and held-out images.

    Raises:
        ValueError: a class has fewer than five images.
    """
    counts = torch.bincount(labels[labels >= 0], minlength=len(attribute.classes))
    smallest = int(counts.min())
    if smallest < 5:
        name = attribute.classes[int(counts.argmin())]
        raise ValueError(
            f"{smallest} of {len(labels)} images are {name!r} ({attribute.name}); "
            "a probe needs at least 5 per class: collect more activations (data.images)."
        )
    generator = torch.Generator().manual_seed(seed)
    test_size = max(1, round(smallest * held_out))
    train, test = [], []
    for index in range(len(attribute.classes)):
        rows = (labels == index).nonzero()[:, 0]
        # As many of each class, or a probe that always says the commonest one would pass for good.
        rows = rows[torch.randperm(len(rows), generator=generator)][:smallest]
        test.append(rows[:test_size])
        train.append(rows[test_size:])
    return torch.cat(train), torch.cat(test)


def fit_each_step(
    new: Callable[[int], Fitted],
    fit_step: Callable[[Fitted, int, Tensor, Tensor], None],
    maps: Callable[[int], Float[Tensor, "images channels height width"]],
    labels: Int[Tensor, "images"],
    attribute: Attribute,
    *,
    steps: int,
    held_out: float,
    seed: int,
    progress: Callable[[int], None],
) -> ProbeFit:
    """A probe fitted step by step on equal numbers of images per class, and its accuracy on held-out ones.

    `new` makes a probe of so many features that knows nothing yet; `fit_step` teaches it one step: (probe, step, features
    [n, D·H·W], labels [n]). The other arguments are those of `fit_linear_probe`.

    Raises:
        ValueError: see `balanced_split`.
    """
    train, test = balanced_split(labels, attribute, held_out=held_out, seed=seed)
    probe, accuracy = None, torch.zeros(steps, dtype=torch.float64)
    for step in range(steps):
        # One step's maps are in memory at a time; only they tell how many features there are.
        h = maps(step).float()
        probe = probe or new(h[0].numel())
        fit_step(probe, step, h[train].flatten(1), labels[train])
        accuracy[step] = (probe(h[test], step).argmax(-1) == labels[test]).double().mean()
        progress(step)
    assert probe is not None
    return ProbeFit(probe, accuracy, len(train) // len(attribute.classes))


def standardised(x: Float[Tensor, "images features"]) -> tuple[Float[Tensor, "images features"], Tensor, Tensor]:
    """Features centred and scaled to unit mean square, their mean [features], and what they were divided by."""
    mean = x.mean(0)
    # One number for all features: `l2` then weighs alike at every step, and no quiet feature is blown up.
    scale = (x - mean).square().mean().sqrt().clamp_min(1e-12)
    return (x - mean) / scale, mean, scale


def minimise(parameters: Sequence[Tensor], loss: Callable[[], Tensor], *, iterations: int) -> None:
    """L-BFGS with a strong Wolfe line search on a loss of these parameters, which are changed in place."""
    # A line search leaves no learning rate to choose, and whole sets no order of images to depend on.
    optimiser = torch.optim.LBFGS(parameters, max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call]


FILE = "probe.safetensors"
"""A probe's buffers and held-out accuracy; its class and settings stand in the header."""


def save_probe(fitted: ProbeFit, folder: Path) -> None:
    """Write a fitted probe into a folder."""
    kind = type(fitted.probe)
    described = {"class": f"{kind.__module__}.{kind.__qualname__}", "settings": dict(fitted.probe.settings())}
    measured = {"accuracy": fitted.accuracy, "images_per_class": torch.tensor(fitted.images_per_class)}
    # One entry: of several the header's order would differ from file to file.
    save_file({**fitted.probe.state_dict(), **measured}, folder / FILE, metadata={"probe": json.dumps(described)})


def load_probe(folder: Path) -> tuple[Probe, Float[Tensor, "steps"]]:
    """The probe of a folder and its held-out accuracy per step (ValueError: its class is no probe)."""
    stored = load_file(folder / FILE)
    with safe_open(folder / FILE, framework="pt") as file:
        described = json.loads(file.metadata()["probe"])
    kind: type[Probe] = saved_class(described["class"], Probe)  # type: ignore[type-abstract]
    probe = kind(**described["settings"])
    # The file also holds what was measured, which is no buffer of the probe.
    probe.load_state_dict({name: stored[name] for name in probe.state_dict()})
    return probe, stored["accuracy"]
