"""A probe with one hidden layer: whether an attribute is there in a form that no linear probe reads."""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difflens.probes.base import Probe, ProbeFit, fit_each_step, minimise, standardised
from difflens.vocabulary import Attribute


class MlpProbe(Probe):
    """Per step `W₂ gelu(W₁ h + b₁) + b₂`; attribution through it goes by autograd (ValueError: no hidden unit)."""

    weight_in: Tensor
    bias_in: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, steps: int, classes: int, features: int, hidden: int) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"probe.hidden must be a whole number of at least 1, got {hidden}.")
        self.register_buffer("weight_in", torch.zeros(steps, hidden, features))
        self.register_buffer("bias_in", torch.zeros(steps, hidden))
        self.register_buffer("weight", torch.zeros(steps, classes, hidden))
        self.register_buffer("bias", torch.zeros(steps, classes))

    @property
    def steps(self) -> int:
        """See `Probe`."""
        return len(self.weight)

    def settings(self) -> Mapping[str, int]:
        """See `Probe`."""
        steps, hidden, features = self.weight_in.shape
        return {"steps": steps, "classes": self.weight.shape[1], "features": features, "hidden": hidden}

    def forward(self, h: Float[Tensor, "images channels height width"], step: int) -> Float[Tensor, "images classes"]:
        """Logits of the attribute's classes at `step`."""
        layers = (self.weight_in[step], self.bias_in[step], self.weight[step], self.bias[step])
        return _logits(h.flatten(1).to(self.weight.dtype), *layers)


def fit_mlp_probe(
    maps: Callable[[int], Float[Tensor, "images channels height width"]],
    labels: Int[Tensor, "images"],
    attribute: Attribute,
    *,
    steps: int,
    hidden: int = 32,
    l2: float = 1e-2,
    iterations: int = 30,
    held_out: float = 0.2,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> ProbeFit:
    """Fit one hidden layer of `hidden` units per step by L-BFGS; all else is as for `fit_linear_probe`.

    `l2` weighs both layers, and `seed` draws their first weights too.

    Raises:
        ValueError: no hidden unit, or see `balanced_split`.
    """
    classes = len(attribute.classes)

    def fit_step(probe: MlpProbe, step: int, features: Tensor, known: Tensor) -> None:
        x, mean, scale = standardised(features)
        shapes = ((hidden, x.shape[1]), (classes, hidden))
        # The same first weights at every step: accuracies then differ by the activations alone. Random ones, since from
        # zeros, as in the linear probe, all hidden units would stay alike.
        generator = torch.Generator().manual_seed(seed)
        first, second = (torch.randn(shape, generator=generator) / math.sqrt(shape[1]) for shape in shapes)
        layers = [values.requires_grad_() for values in (first, torch.zeros(hidden), second, torch.zeros(classes))]

        def loss() -> Tensor:
            size = layers[0].square().sum() + layers[2].square().sum()
            return nn.functional.cross_entropy(_logits(x, *layers), known) + l2 / 2 * size

        minimise(layers, loss, iterations=iterations)
        first, bias_in, second, bias = (layer.detach() for layer in layers)
        raw = first / scale
        probe.weight_in[step], probe.bias_in[step] = raw, bias_in - raw @ mean
        probe.weight[step], probe.bias[step] = second, bias

    new = partial(MlpProbe, steps, classes, hidden=hidden)
    return fit_each_step(
        new, fit_step, maps, labels, attribute, steps=steps, held_out=held_out, seed=seed, progress=progress
    )


def _logits(x: Tensor, weight_in: Tensor, bias_in: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return nn.functional.gelu(x @ weight_in.T + bias_in) @ weight.T + bias
