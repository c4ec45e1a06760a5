"""DiffLens: rescale, raise, pin or shift the located sparse features towards each image's target class."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from difflens.attribution.statistics import CodeStatistics
from difflens.methods.base import (
    Given,
    Method,
    Need,
    SiteEdit,
    Window,
    check_focus,
    check_switch,
    check_update,
)
from difflens.models.devices import placed
from difflens.probes.base import Probe
from difflens.sae.base import SparseAutoencoder
from difflens.vocabulary import FeatureSet, PerImage, Site

Mode = Literal["contrast", "margin", "scale", "add", "clamp"]
Places = Literal["everywhere", "fired"]
Protocol = Literal["difflens", "official"]
Unit = Literal["level", "code"]


SECANTS = 3
"""Steps by which `margin` finds how far to go."""
FARTHEST = 32.0
"""Multiples of the model's own difference between two classes that `margin` never exceeds."""


class DiffLens(Method):
    """The paper's method (arXiv 2503.20483), its published modes and ours.

    Args:
        mode: see `FeatureEdit`; so are `places`, `suppress` and `protocol`.
        unit: `level`, strengths of `add` and `clamp` count in a latent's usual activation; `code`, in plain numbers.
        places: where `add` and `clamp` act.
        suppress: factor of the other classes' latents, None leaves them.
        gate: weaken the edit where the probe already reads the target class.
        protocol: `official` for the quirks of the released code.
        update: `asymmetric` or `symmetric`.
        window: the edited steps.
        held_top: latents per class of an attribute that is held.
        focus: share of each image's places that follow the unedited trajectory: where the edit changes it least. It costs
            one denoiser pass more in every step, and needs the asymmetric update.
        release: share of the steps from which these places are let go, so that the model joins them to the others.
    """

    adds_up: ClassVar[bool] = True

    def __init__(
        self,
        *,
        mode: str = "contrast",
        unit: str = "level",
        places: str = "everywhere",
        suppress: float | None = None,
        gate: bool = True,
        protocol: str = "difflens",
        update: str = "asymmetric",
        window: Window | None = None,
        held_top: int = 24,
        focus: float = 0.0,
        release: float = 1.0,
    ) -> None:
        check_mode(mode, places, protocol, unit)
        check_switch("mitigation.gate", gate)
        check_update(update)
        self.mode, self.unit, self.places, self.suppress = mode, unit, places, suppress
        self.gate, self.protocol, self.update, self.held_top = gate, protocol, update, held_top
        check_focus(focus, release, update)
        self.window, self.focus, self.release = window or Window(), focus, release

    @property
    def needs(self) -> frozenset[Need]:
        """See `Method.needs`."""
        return frozenset(("attribution", "probe")) if self.gate else frozenset(("attribution",))

    def edit(self, given: Given, learnt: Mapping[str, Tensor]) -> "FeatureEdit":
        """See `Method.edit`."""
        assert given.located is not None
        located = given.located
        # With a usual level of 1 strengths are plain numbers, which is how the released code states them.
        if self.unit == "code":
            level = torch.ones_like(located.statistics.level)
            located = located._replace(statistics=located.statistics._replace(level=level))
        edit = FeatureEdit(
            *located,
            site=given.site,
            mode=self.mode,
            places=self.places,
            suppress=self.suppress,
            update=self.update,
            window=self.window,
            gate=given.probe if self.gate else None,
            protocol=self.protocol,
        )
        edit.focus, edit.release = self.focus, self.release
        return edit

    def holder(self, given: Given, learnt: Mapping[str, Tensor]) -> SiteEdit:
        """See `Method.holder`: by the model's own difference between the classes, as far as the probe reads that it left."""
        assert given.located is not None
        edit = FeatureEdit(*given.located, site=given.site, mode="contrast", gate=given.probe)
        return edit.with_strength(torch.ones(len(given.attribute.classes)))


class FeatureEdit(SiteEdit):
    """h′ = h + W_decᵀ Δz with Δz on the selected latents alone and no bias (METHOD section 5).

    With r the strength of the image's target class c, z the latent's code and u its usual level where it fires:

    - `scale`: Δz = (r − 1) z; `add`: Δz = r·u; `clamp`: Δz = r·u − z; on the latents of class c.
    - `contrast`: Δz = r·Σ_k p_k (mean code of class c − mean code of class k) at each position and step, on the latents of
      all classes, never below −z; p is what the gate reads, or uniform over the other classes without one. r = 1 moves by
      the difference the model itself makes between the class it shows and class c, and only where in the image it makes it.

    - `margin`: along the same difference, from the classes that the gate reads other than c, but in each image and step only
      as far as the gate's margin ℓ_c − log Σ_{k≠c} e^{ℓ_k} reaches log(e^r − 1): about r where r is large, the border at
      r = log 2. An image that is there already is left as it is.

    Args:
        sae: reads codes and holds the decoder.
        features: latents per class.
        statistics: of exactly these latents.
        site: where the SAE was trained.
        mode: see above.
        places: for `add` and `clamp`, edit every position or only those where the latent fired.
        suppress: for `scale`, `add` and `clamp`: scale latents of the other classes by this factor too; None leaves them.
        update: see `SiteEdit`.
        window: see `SiteEdit`.
        gate: where it already reads the target class with probability p, the edit shrinks by 1 − p, and `contrast` starts
            from the classes that it reads.
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
        places: str = "everywhere",
        suppress: float | None = None,
        update: str = "asymmetric",
        window: Window | None = None,
        gate: Probe | None = None,
        protocol: str = "difflens",
    ) -> None:
        super().__init__(features.attribute, site=site, update=update, window=window or Window(), gate=gate)
        check_mode(mode, places, protocol)
        # Codes and statistics are matched by position.
        assert torch.equal(statistics.latents, selected_latents(features)), "statistics of other latents"
        if mode == "margin" and gate is None:
            raise ValueError("mitigation.mode=margin goes by what the probe reads; set mitigation.gate=true.")
        self.sae, self.features, self.statistics = sae, features, statistics
        self.mode, self.places, self.suppress, self.protocol = mode, places, suppress, protocol
        self.neutral = 1.0 if mode == "scale" else 0.0
        # Nothing changes until strengths are given; the zeros of `Steering` would silence latents under `scale`.
        self._table = torch.full((1, len(self.attribute.classes)), self.neutral)
        self._own = membership(features.latents, features.attribute.classes, statistics.latents)
        self._reads, self._columns = statistics.latents, torch.arange(len(statistics.latents))

    def beside(self, others: Sequence[SiteEdit]) -> tuple[SiteEdit, ...]:
        """See `SiteEdit.beside`: all read the codes of the latents of each."""
        members = [member for member in (self, *others) if isinstance(member, FeatureEdit)]
        assert len(members) == 1 + len(others), "edits of another kind read no codes"
        # `unique` sorts, as `searchsorted` in `_reading` needs it.
        together = torch.cat([member.statistics.latents for member in members]).unique()
        return tuple(member._reading(together) for member in members)

    def _reading(self, latents: Tensor) -> "FeatureEdit":
        other = copy(self)
        other._reads, other._columns = latents, torch.searchsorted(latents, self.statistics.latents)
        return other

    def read(self, h: Float[Tensor, "images channels height width"]) -> Tensor:
        """The codes of the latents that are read: its own, and those of the edits beside it."""
        codes: Tensor = placed(self.sae, h.device).codes_of_latents(h.float(), self._reads)
        return codes

    def write(
        self,
        h: Float[Tensor, "images channels height width"],
        delta: Float[Tensor, "images latents codes_height codes_width"],
        touched: Bool[Tensor, "images"],
    ) -> Float[Tensor, "images channels height width"]:
        """See `SiteEdit.write`; under `official` every touched image also gets the decoder's bias."""
        sae = placed(self.sae, h.device)
        edited: Tensor = sae.add_to_map(h, delta, self._reads)
        if self.protocol == "official":
            bias = sae.b_dec.detach().to(h.dtype)[None, :, None, None]
            edited = torch.where(touched[:, None, None, None], edited + bias, edited)
        return edited

    def dose(self, images: PerImage) -> Float[Tensor, "images"]:
        """See `SiteEdit.dose`; once under `margin`, whose strength is no multiple of the difference but a margin in nats."""
        dose = super().dose(images)
        return (dose > 0).to(dose) if self.mode == "margin" else dose

    def delta(self, z: Tensor, h: Tensor, step: int, images: PerImage) -> Tensor:
        """See `SiteEdit.delta`; `margin` looks at the activations themselves."""
        if self.mode != "margin":
            return super().delta(z, h, step, images)
        assert self.gate is not None
        gate, target = placed(self.gate, h.device), images.target.clamp_min(0)
        strength = self.strength_of(images).to(z)
        pushed = (images.target >= 0) & (strength > 0)
        logits = gate(h, step)
        # The classes to be left, in the proportions in which they are read; p_c says nothing of the direction.
        others = logits.softmax(-1).scatter(1, target[:, None], 0.0)
        shown = others / others.sum(1, keepdim=True).clamp_min(1e-12)
        along = self._contrast(z, step, target, torch.ones_like(strength), shown)
        # log(e^r − 1), such that large r do not overflow and small ones keep their digits; −∞ at r = 0, hence `where`.
        missing = torch.where(
            pushed, strength + torch.log(-torch.expm1(-strength)) - margin(logits, target), 0.0
        ).clamp_min(0)
        amount, found = torch.ones_like(missing), torch.zeros_like(z)
        # Codes stop at zero, so that the way is not quite straight: a few steps of the secant method.
        for _ in range(SECANTS):
            found[:, self._columns] = self.limit(z[:, self._columns], amount[:, None, None, None] * along)
            gained = margin(gate(self.write(h, found, pushed), step), target) - margin(logits, target)
            # Where the way gains nothing, going further would not help: the image is left as it is.
            ratio = torch.where(gained > 0, missing / gained.clamp_min(1e-9), 0.0)
            amount = (amount * ratio).clamp(0, FARTHEST)
        found[:, self._columns] = self.limit(z[:, self._columns], amount[:, None, None, None] * along)
        return found

    def limit(self, z: Tensor, delta: Tensor) -> Tensor:
        """See `SiteEdit.limit`: no code below zero, which no SAE gives."""
        return torch.maximum(delta, -z)

    def change(
        self,
        z: Float[Tensor, "images read height width"],
        step: int,
        target: Int[Tensor, "images"],
        strength: Float[Tensor, "images"],
        shown: Float[Tensor, "images classes"] | None = None,
    ) -> Float[Tensor, "images read height width"]:
        """See `SiteEdit.change`."""
        codes = z[:, self._columns]
        if self.mode == "contrast":
            found = self.limit(codes, self._contrast(codes, step, target, strength, shown))
        else:
            if shown is not None:
                # Shrunk towards neutral, which under `scale` is 1.
                strength = self.neutral + (strength - self.neutral) * (1 - shown.gather(1, target[:, None])[:, 0])
            found = self._change_own_latents(codes, step, target, strength[:, None, None, None])
        # z may also hold the codes of edits beside this one, which are not its to change.
        delta = torch.zeros_like(z)
        delta[:, self._columns] = found
        return delta

    def _contrast(self, codes: Tensor, step: int, target: Tensor, strength: Tensor, shown: Tensor | None) -> Tensor:
        """r·Σ_k p_k (mean_c − mean_k): the mean of the target class less that of the classes shown."""
        mean = self.statistics.mean[:, step].to(codes)
        wanted = torch.nn.functional.one_hot(target, len(mean)).to(codes)
        # Σ_k p_k (mean_c − mean_k) = mean_c − Σ_k p_k mean_k, since p sums to 1.
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


def margin(logits: Float[Tensor, "images classes"], target: Int[Tensor, "images"]) -> Float[Tensor, "images"]:
    """ℓ_c − log Σ_{k≠c} e^{ℓ_k}: the log-odds of the target class."""
    own = logits.gather(1, target[:, None])[:, 0]
    return own - logits.scatter(1, target[:, None], -torch.inf).logsumexp(1)


class SingleFeature(SiteEdit):
    """Raises one latent per image, or lowers it but never below zero: what a feature does by itself.

    An image's target is the position of its latent among the selected ones.

    Args:
        whole: the edit whose latents and statistics are used.
        owner: for each selected latent, the class whose mean code map it is raised by [L].
        strength: multiple of that map.
    """

    def __init__(self, whole: FeatureEdit, owner: Int[Tensor, "selected"], *, strength: float) -> None:
        super().__init__(whole.attribute, site=whole.site, update=whole.update, window=Window(0.0, 1.0))
        self.whole, self.owner, self.multiple = whole, owner, strength

    def strength_of(self, images: PerImage) -> Float[Tensor, "images"]:
        """The same for every image."""
        return torch.full(images.target.shape, self.multiple, device=images.target.device)

    def read(self, h: Float[Tensor, "images channels height width"]) -> Tensor:
        """The codes of the selected latents."""
        return self.whole.read(h)

    def change(self, z: Tensor, step: int, target: Tensor, strength: Tensor, shown: Tensor | None = None) -> Tensor:
        """See `SiteEdit.change`."""
        maps = self.whole.statistics.mean[self.owner, step, range(len(self.owner))].to(z)
        chosen = torch.nn.functional.one_hot(target, len(maps)).to(z)
        return self.whole.limit(z, (strength[:, None] * chosen)[:, :, None, None] * maps)

    def write(self, h: Tensor, delta: Tensor, touched: Tensor) -> Tensor:
        """See `SiteEdit.write`."""
        edited: Tensor = placed(self.whole.sae, h.device).add_to_map(h, delta, self.whole.statistics.latents)
        return edited


def check_mode(mode: str, places: str, protocol: str, unit: str = "level") -> None:
    """Check four words of the configuration.

    Raises:
        ValueError: one is not known.
    """
    words = (("mode", mode, Mode), ("places", places, Places), ("protocol", protocol, Protocol), ("unit", unit, Unit))
    for name, value, known in words:
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
