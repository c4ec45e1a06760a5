"""Distribution guidance: the activations follow the gradient that brings a batch's mean class probabilities to the target.

Parihar et al. 2024 (arXiv 2402.18206), "Balancing Act: Distribution-Guided Debiasing in Diffusion Models", eq. 6, with the
released code's loss and settings for P2 (for Stable Diffusion its loss is Σ p̄ log(p̄/q), near q half as much). The images of
a micro-batch are coupled: what one is given depends on the others. There the target is the distribution asked for; here it is
that of the classes which the images of the micro-batch were assigned, which is the same in the mean.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.methods.base import Given, MapEdit, Method, Need, Window, check_update
from difflens.probes.base import Probe
from difflens.vocabulary import Attribute, PerImage, Site

FACTORS = "factors"
TEMPERATURE = 8.0
"""The classifier's logits are divided by it (released code)."""


class HDistribution(Method):
    """h ← h − r · 1.5 β_t^0.05 · ∇_h 300 L with L = Σ_k (p̄_k − q_k)² / q_k; the released scale r is 1500 at 100 images.

    Args:
        update: `symmetric` as released, or `asymmetric`.
        window: the edited steps.
    """

    couples: ClassVar[bool] = True
    assigns: ClassVar[bool] = False

    def __init__(self, *, update: str = "symmetric", window: Window | None = None) -> None:
        check_update(update)
        self.update, self.window = update, window or Window()

    @property
    def needs(self) -> frozenset[Need]:
        """See `Method.needs`."""
        return frozenset(["probe"])

    def learn(self, given: Given) -> dict[str, Tensor]:
        """The factor 450 β_t^0.05 of every step [steps]."""
        assert given.model is not None
        timesteps = torch.tensor([int(t) for t in given.model.timesteps])
        betas = given.model.pipeline.scheduler.betas[timesteps]
        return {FACTORS: 1.5 * 300 * betas.double().pow(0.05)}

    def edit(self, given: Given, learnt: Mapping[str, Tensor]) -> "GradientEdit":
        """See `Method.edit`.

        Raises:
            ValueError: the probe is not linear.
        """
        assert given.probe is not None
        if given.probe.affine_layer(0) is None:
            raise ValueError("mitigation=h_distribution reads one linear classifier per step; use probe=linear.")
        return GradientEdit(
            given.attribute,
            given.probe,
            learnt[FACTORS],
            site=given.site,
            update=self.update,
            window=self.window,
        )


class GradientEdit(MapEdit):
    """Moves all images of a micro-batch that have a class along the gradient of the distribution's loss.

    The probe is linear and reads at the site; `factors` are those of every step [steps].
    """

    def __init__(
        self, attribute: Attribute, probe: Probe, factors: Tensor, *, site: Site, update: str, window: Window
    ) -> None:
        super().__init__(attribute, site=site, update=update, window=window)
        self.probe, self.factors = probe, factors

    def delta(self, z: Tensor, h: Tensor, step: int, images: PerImage) -> Tensor:
        """−r · factor · ∇_h L of each image, 0 of those without a class."""
        # Images without a class are left out of the mean as well: they are not to be balanced.
        moved = images.target >= 0
        found = torch.zeros_like(z)
        if bool(moved.any()):
            layer = self.probe.affine_layer(step)
            assert layer is not None
            gradient = distribution_gradient(z[moved].flatten(1), images.target[moved], *(part.to(z) for part in layer))
            found[moved] = -(self.scale * float(self.factors[step]) * gradient).view(z[moved].shape)
        return found

    @property
    def scale(self) -> float:
        """One strength for all: the mean of the classes'."""
        # The loss is one for the whole micro-batch: no class has a part of it that a strength could scale.
        return float(self.strength.double().mean())

    def change(self, z: Tensor, step: int, target: Tensor, strength: Tensor, shown: Tensor | None = None) -> Tensor:
        """No image's change is its own: see `delta`."""
        raise NotImplementedError


def distribution_gradient(
    h: Float[Tensor, "images features"],
    target: Int[Tensor, "images"],
    weight: Float[Tensor, "classes features"],
    bias: Float[Tensor, "classes"],
) -> Float[Tensor, "images features"]:
    """∇_h Σ_k (p̄_k − q_k)² / q_k with p̄ the images' mean of softmax((W h + b) / 8), and q the shares of their targets.

    In closed form, since sampling keeps no graph; classes that no image is assigned have no term.
    """
    p = ((h @ weight.T + bias) / TEMPERATURE).softmax(-1)
    q = torch.nn.functional.one_hot(target, len(bias)).to(p).mean(0)
    # ∂L/∂p̄_k, of which each of the n images has one n-th; then the softmax's Jacobian diag(p) − p pᵀ, then W / 8.
    slope = torch.where(q > 0, 2 * (p.mean(0) - q) / q.clamp_min(1e-12), 0.0) / len(h)
    return (p * (slope - (p @ slope)[:, None])) @ weight / TEMPERATURE
