"""One feature at a time: what a single latent does to an image when it is raised where its class usually has it."""

from jaxtyping import Float, Int
from torch import Tensor

from difflens.mitigation.base import Mitigation, Window
from difflens.mitigation.sae_features import SaeFeatureMitigation


class SingleFeature(Mitigation):
    """Raises one latent per image; an image's target is the position of its latent among the selected ones.

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
        statistics = self.whole.statistics
        maps = statistics.mean[self.owner, step, range(len(self.owner))].to(h)
        chosen = targets.clamp_min(0)
        delta = h.new_zeros(len(h), len(maps), *maps.shape[1:])
        delta[range(len(h)), chosen] = self.strength * maps[chosen] * (targets >= 0).to(h)[:, None, None]
        return self.whole.sae.add_to_map(h, delta, statistics.latents.to(h.device))
