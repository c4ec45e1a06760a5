"""One feature at a time: what a single latent does to an image when it is raised where its class usually has it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.methods.base import Mitigation, Window
from difflens.methods.sae_features import SaeFeatureMitigation
from difflens.models.devices import placed


class SingleFeature(Mitigation):
    """Raises one latent per image, or lowers it but never below zero.

    An image's target is the position of its latent among the selected ones.

    Args:
        whole: the mitigation whose latents and statistics are used.
        owner: for each selected latent, the class whose mean code map it is raised by [L].
        strength: multiple of that map.
    """

    def __init__(self, whole: SaeFeatureMitigation, owner: Int[Tensor, "selected"], *, strength: float) -> None:
        super().__init__(whole.attribute, site=whole.site, update=whole.update, window=Window(0.0, 1.0))
        self.whole, self.owner, self.strength = whole, owner, strength

    def with_strength(self, strength: Float[Tensor, "classes"]) -> "SingleFeature":
        """The same at the strongest of the given strengths."""
        return SingleFeature(self.whole, self.owner, strength=float(strength.max()))

    def __call__(
        self, h: Float[Tensor, "images channels height width"], step: int, targets: Int[Tensor, "images"]
    ) -> Float[Tensor, "images channels height width"]:
        """See `Mitigation`."""
        statistics, latents = self.whole.statistics, self.whole.statistics.latents
        codes = self.whole.codes(h, latents)
        maps = statistics.mean[self.owner, step, range(len(self.owner))].to(codes)
        chosen = torch.nn.functional.one_hot(targets.clamp_min(0), len(maps)) * (targets >= 0)[:, None]
        delta = self.strength * maps * chosen[:, :, None, None]
        return placed(self.whole.sae, h.device).add_to_map(h, torch.maximum(delta, -codes), latents)
