"""The paper's h-classifier: one linear softmax classifier per denoising step on the flattened activations."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difflens.probes.base import Probe, ProbeFit, fit_each_step, minimise, standardised
from difflens.vocabulary import Attribute


class LinearProbe(Probe):
    """Weights [steps, C, D·H·W] and biases [steps, C] of one linear classifier per step."""

    weight: Tensor
    bias: Tensor

    def __init__(self, steps: int, classes: int, features: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(steps, classes, features))
        self.register_buffer("bias", torch.zeros(steps, classes))

    @property
    def steps(self) -> int:
        """See `Probe`."""
        return len(self.weight)

    def settings(self) -> Mapping[str, int]:
        """See `Probe`."""
        steps, classes, features = self.weight.shape
        return {"steps": steps, "classes": classes, "features": features}

    def affine_layer(self, step: int) -> tuple[Float[Tensor, "classes features"], Float[Tensor, "classes"]]:
        """See `Probe`."""
        return self.weight[step], self.bias[step]

    def forward(self, h: Float[Tensor, "images channels height width"], step: int) -> Float[Tensor, "images classes"]:
        """Logits of the attribute's classes at `step`."""
        return h.flatten(1).to(self.weight.dtype) @ self.weight[step].T + self.bias[step]


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
    classes = len(attribute.classes)

    def fit_step(probe: LinearProbe, step: int, features: Tensor, known: Tensor) -> None:
        x, mean, scale = standardised(features)
        # The loss is convex: zeros are as good a start as any, and draw no random numbers.
        weight = torch.zeros(classes, x.shape[1], requires_grad=True)
        bias = torch.zeros(classes, requires_grad=True)

        def loss() -> Tensor:
            return nn.functional.cross_entropy(x @ weight.T + bias, known) + l2 / 2 * weight.square().sum()

        minimise([weight, bias], loss, iterations=iterations)
        # W (x − μ) / s + b = (W / s) x + (b − W μ / s): the probe takes activations as they were recorded.
        raw = weight.detach() / scale
        probe.weight[step], probe.bias[step] = raw, bias.detach() - raw @ mean

    new = partial(LinearProbe, steps, classes)
    return fit_each_step(
        new, fit_step, maps, labels, attribute, steps=steps, held_out=held_out, seed=seed, progress=progress
    )
