"""The paper's h-classifier: one linear softmax classifier per denoising step on the flattened activations."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difflens.types import Attribute


class LinearProbe(nn.Module):
    """Weights [steps, C, D·H·W] and biases [steps, C] of one linear classifier per step."""

    weight: Tensor
    bias: Tensor

    def __init__(self, steps: int, classes: int, features: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(steps, classes, features))
        self.register_buffer("bias", torch.zeros(steps, classes))

    def forward(self, h: Float[Tensor, "images channels height width"], step: int) -> Float[Tensor, "images classes"]:
        """Logits of the attribute's classes at `step`."""
        return h.flatten(1).to(self.weight.dtype) @ self.weight[step].T + self.bias[step]


class ProbeFit(NamedTuple):
    """A fitted probe and its held-out accuracy per step [steps] (float64), with the images per class it was fitted on."""

    probe: LinearProbe
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
        rows = rows[torch.randperm(len(rows), generator=generator)][:smallest]
        test.append(rows[:test_size])
        train.append(rows[test_size:])
    return torch.cat(train), torch.cat(test)


def fit_linear_probe(
    maps: Callable[[int], Float[Tensor, "images channels height width"]],
    labels: Int[Tensor, "images"],
    attribute: Attribute,
    *,
    steps: int,
    l2: float = 1e-2,
    iterations: int = 30,
    held_out: float = 0.2,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> ProbeFit:
    """Fit one L2-regularised softmax classifier per step by L-BFGS (METHOD section 3).

    Args:
        maps: gives the activations of all labelled images at a step.
        labels: class index per image, negative where it is unknown.
        attribute: whose classes are read.
        steps: number of denoising steps.
        l2: weight of ‖W‖²/2 on features scaled to unit mean square.
        iterations: L-BFGS iterations per step.
        held_out: share of each class kept for the accuracy.
        seed: of the split.
        progress: called with each step done.

    Raises:
        ValueError: see `balanced_split`.
    """
    train, test = balanced_split(labels, attribute, held_out=held_out, seed=seed)
    probe, accuracy = None, torch.zeros(steps, dtype=torch.float64)
    for step in range(steps):
        h = maps(step).flatten(1).float()
        probe = probe or LinearProbe(steps, len(attribute.classes), h.shape[1])
        probe.weight[step], probe.bias[step] = _softmax_regression(
            h[train], labels[train], len(attribute.classes), l2=l2, iterations=iterations
        )
        predicted = (h[test] @ probe.weight[step].T + probe.bias[step]).argmax(-1)
        accuracy[step] = (predicted == labels[test]).double().mean()
        progress(step)
    assert probe is not None
    return ProbeFit(probe, accuracy, len(train) // len(attribute.classes))


def _softmax_regression(
    x: Tensor, labels: Tensor, classes: int, *, l2: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """Weights and biases on raw features, fitted on features centred and scaled to unit mean square."""
    mean = x.mean(0)
    scale = (x - mean).square().mean().sqrt().clamp_min(1e-12)
    x = (x - mean) / scale
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(x @ weight.T + bias, labels) + l2 / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    raw = weight.detach() / scale
    return raw, bias.detach() - raw @ mean
