"""DiffLens' intervention: rescale, raise, pin or shift the selected sparse features towards each image's target class."""

from collections.abc import Mapping
from copy import copy
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.attribution.statistics import CodeStatistics
from difflens.methods.base import Mitigation, Window
from difflens.models.devices import placed
from difflens.probes.base import Probe
from difflens.sae.base import SparseAutoencoder
from difflens.vocabulary import FeatureSet, Site

Mode = Literal["contrast", "scale", "add", "clamp"]
Places = Literal["everywhere", "fired"]
Protocol = Literal["difflens", "official"]


class SaeFeatureMitigation(Mitigation):
    """h′ = h + W_decᵀ Δz with Δz on the selected latents alone and no bias (METHOD section 5).

    With r the strength of the image's target class c, z the latent's code and u its usual level where it fires:

    - `scale`: Δz = (r − 1) z; `add`: Δz = r·u; `clamp`: Δz = r·u − z; on the latents of class c.
    - `contrast`: Δz = r·Σ_k p_k (mean code of class c − mean code of class k) at each position and step, on the latents of
      all classes, never below −z; p is what the gate reads, or uniform over the other classes without one. r = 1 moves by
      the difference the model itself makes between the class it shows and class c, and only where in the image it makes it.

    Args:
        sae: reads codes and holds the decoder.
        features: latents per class.
        statistics: of exactly these latents.
        site: where the SAE was trained.
        mode: see above.
        strength: r per class [C].
        places: for `add` and `clamp`, edit every position or only those where the latent fired.
        suppress: for `scale`, `add` and `clamp`: scale latents of the other classes by this factor too; None leaves them.
        update: see `Mitigation`.
        window: see `Mitigation`.
        gate: a probe of the attribute; where it already reads the target class with probability p, the edit shrinks by 1 − p,
            and `contrast` starts from the classes that it reads.
        protocol: `official` adds the decoder's bias at every edited step, as the released code does on P2 (METHOD section 9).

    Raises:
        ValueError: an unknown mode, place or protocol.
    """

    def __init__(
        self,
        sae: SparseAutoencoder,
        features: FeatureSet,
        statistics: CodeStatistics,
        *,
        site: Site,
        mode: str,
        strength: Float[Tensor, "classes"],
        places: str = "everywhere",
        suppress: float | None = None,
        update: str = "asymmetric",
        window: Window | None = None,
        gate: Probe | None = None,
        protocol: str = "difflens",
    ) -> None:
        super().__init__(features.attribute, site=site, update=update, window=window or Window())
        check_mode(mode, places, protocol)
        assert torch.equal(statistics.latents, selected_latents(features)), "statistics of other latents"
        self.sae, self.features, self.statistics = sae, features, statistics
        self.mode, self.places, self.suppress = mode, places, suppress
        self.gate, self.protocol = gate, protocol
        self.strength = strength.float()
        self._own = membership(features.latents, features.attribute.classes, statistics.latents)

    @property
    def neutral(self) -> float:
        """The strength that changes nothing."""
        return 1.0 if self.mode == "scale" else 0.0

    def with_strength(self, strength: Float[Tensor, "classes"]) -> "SaeFeatureMitigation":
        """See `Mitigation.with_strength`."""
        other = copy(self)
        other.strength = strength.float()
        return other

    def __call__(
        self, h: Float[Tensor, "images channels height width"], step: int, targets: Int[Tensor, "images"]
    ) -> Float[Tensor, "images channels height width"]:
        """See `Mitigation`."""
        latents = self.statistics.latents
        delta = self.change(self.codes(h, latents), step, targets, shown=self.shown(h, step))
        return self.write(h, delta, targets, latents)

    def codes(
        self, h: Float[Tensor, "images channels height width"], latents: Int[Tensor, "latents"]
    ) -> Float[Tensor, "images latents codes_height codes_width"]:
        """The codes of these latents."""
        return placed(self.sae, h.device).codes_of_latents(h.float(), latents)

    def shown(
        self, h: Float[Tensor, "images channels height width"], step: int
    ) -> Float[Tensor, "images classes"] | None:
        """What the gate reads in each image, None without one."""
        return None if self.gate is None else placed(self.gate, h.device)(h, step).softmax(-1)

    def write(
        self,
        h: Float[Tensor, "images channels height width"],
        delta: Float[Tensor, "images latents codes_height codes_width"],
        targets: Int[Tensor, "images"],
        latents: Int[Tensor, "latents"],
    ) -> Float[Tensor, "images channels height width"]:
        """The activations with Δz of these latents added, and under `official` the decoder's bias in every edited image."""
        sae = placed(self.sae, h.device)
        edited = sae.add_to_map(h, delta, latents)
        if self.protocol == "official":
            bias = sae.b_dec.detach().to(h.dtype)[None, :, None, None]
            edited = torch.where((targets >= 0)[:, None, None, None], edited + bias, edited)
        return edited

    def change(
        self,
        codes: Float[Tensor, "images selected height width"],
        step: int,
        targets: Int[Tensor, "images"],
        *,
        shown: Float[Tensor, "images classes"] | None = None,
    ) -> Float[Tensor, "images selected height width"]:
        """Δz on the selected latents, zero for untouched images; `shown` is the gate's reading of each image."""
        target = targets.clamp_min(0)
        strength = self.strength.to(codes.device)[target]
        if self.mode == "contrast":
            delta = torch.maximum(self._contrast(codes, step, target, strength, shown), -codes)
        else:
            if shown is not None:
                strength = self.neutral + (strength - self.neutral) * (1 - shown.gather(1, target[:, None])[:, 0])
            delta = self._change_own_latents(codes, step, target, strength[:, None, None, None])
        return torch.where((targets >= 0)[:, None, None, None], delta, 0.0)

    def _contrast(self, codes: Tensor, step: int, target: Tensor, strength: Tensor, shown: Tensor | None) -> Tensor:
        """r·Σ_k p_k (mean_c − mean_k): the mean of the target class less that of the classes shown."""
        mean = self.statistics.mean[:, step].to(codes)
        wanted = torch.nn.functional.one_hot(target, len(mean)).to(codes)
        weight = wanted - ((1 - wanted) / (len(mean) - 1) if shown is None else shown.to(codes))
        return torch.einsum("nc,clhw->nlhw", strength[:, None] * weight, mean)

    def _change_own_latents(self, codes: Tensor, step: int, target: Tensor, strength: Tensor) -> Tensor:
        level = self.statistics.level[step].to(codes)[None, :, None, None]
        fired = (codes > 0).to(codes.dtype) if self.places == "fired" else torch.ones_like(codes)
        match self.mode:
            case "scale":
                delta = (strength - 1) * codes
            case "add":
                delta = strength * level * fired
            case _:
                delta = (strength * level - codes) * fired
        own = self._own.to(codes.device)[target][:, :, None, None]
        return torch.where(own, delta, 0.0 if self.suppress is None else (self.suppress - 1) * codes)


def check_mode(mode: str, places: str, protocol: str) -> None:
    """Check three words of the configuration.

    Raises:
        ValueError: one is not known.
    """
    for name, value, known in (("mode", mode, Mode), ("places", places, Places), ("protocol", protocol, Protocol)):
        if value not in get_args(known):
            raise ValueError(f"mitigation.{name} must be one of {', '.join(get_args(known))}, got {value!r}.")


def selected_latents(features: FeatureSet) -> Int[Tensor, "selected"]:
    """The distinct latents of all classes, in increasing order."""
    return torch.tensor(sorted({latent for group in features.latents.values() for latent in group}), dtype=torch.int64)


def membership(
    latents: Mapping[str, tuple[int, ...]], classes: tuple[str, ...], union: Int[Tensor, "selected"]
) -> Tensor:
    """Which of the selected latents belong to each class, bool [C, selected]."""
    return torch.stack([torch.isin(union, torch.tensor(latents[name], dtype=torch.int64)) for name in classes])
