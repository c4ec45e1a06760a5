"""The linear direction of a class in h-space: the mean difference of activations between classes, added at every step.

Haas et al. 2023 (arXiv 2303.11073), "Discovering Interpretable Directions in the Semantic Latent Space of Diffusion
Models", section 4; needs no autoencoder.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.methods.base import (
    Given,
    MapEdit,
    Method,
    Need,
    Window,
    check_focus,
    check_switch,
    check_update,
    class_counts,
)
from difflens.probes.base import Probe
from difflens.vocabulary import Attribute, Site

DIRECTIONS = "directions"


class HDirection(Method):
    """h′ = h + r_c n_{c,t} with n_{c,t} = mean(h_t | class c) − mean(h_t | another class), of the model's own images.

    Args:
        gate: weaken the edit where the probe already reads the target class; the published method has no gate.
        update: `asymmetric` or `symmetric`.
        window: the edited steps.
        focus: see `DiffLens`; the published method leaves no place alone.
        release: see `DiffLens`.
    """

    adds_up: ClassVar[bool] = True

    def __init__(
        self,
        *,
        gate: bool = False,
        update: str = "asymmetric",
        window: Window | None = None,
        focus: float = 0.0,
        release: float = 1.0,
    ) -> None:
        check_switch("mitigation.gate", gate)
        check_update(update)
        check_focus(focus, release, update)
        self.gate, self.update, self.window, self.focus, self.release = gate, update, window or Window(), focus, release

    @property
    def needs(self) -> frozenset[Need]:
        """See `Method.needs`."""
        return frozenset(("activations", "probe")) if self.gate else frozenset(("activations",))

    def learn(self, given: Given) -> dict[str, Tensor]:
        """The directions [classes, steps, D, H, W] (float32).

        Raises:
            ValueError: no image shows a class.
        """
        assert given.maps is not None and given.labels is not None
        labels = given.labels()
        counts = class_counts(given.attribute, labels, key="data.images")
        # Step by step: maps of all steps would not fit into memory.
        steps = [class_directions(given.maps(step), labels, counts) for step in range(given.steps)]
        return {DIRECTIONS: torch.stack(steps, 1)}

    def edit(self, given: Given, learnt: Mapping[str, Tensor]) -> "DirectionEdit":
        """See `Method.edit`."""
        edit = self._gated(given, learnt, given.probe if self.gate else None)
        edit.focus, edit.release = self.focus, self.release
        return edit

    def holder(self, given: Given, learnt: Mapping[str, Tensor]) -> "DirectionEdit":
        """See `Method.holder`: the held attribute's own direction, as far as its probe reads that the class has left."""
        return self._gated(given, learnt, given.probe).with_strength(torch.ones(len(given.attribute.classes)))

    def _gated(self, given: Given, learnt: Mapping[str, Tensor], gate: Probe | None) -> "DirectionEdit":
        directions = learnt[DIRECTIONS]
        return DirectionEdit(
            given.attribute, directions, site=given.site, update=self.update, window=self.window, gate=gate
        )


def class_directions(
    maps: Float[Tensor, "images channels height width"], labels: Int[Tensor, "images"], counts: Int[Tensor, "classes"]
) -> Float[Tensor, "classes channels height width"]:
    """Each class's mean less the mean of all images of other classes; images of unknown class count nowhere.

    Sums are in float64: maps are stored in half precision, whose own sums would lose digits.
    """
    known = labels >= 0
    member = torch.nn.functional.one_hot(labels[known], len(counts)).double()
    return directions_of(torch.einsum("nc,ndhw->cdhw", member, maps[known].double()), counts)


def directions_of(
    sums: Float[Tensor, "classes channels height width"], counts: Int[Tensor, "classes"]
) -> Float[Tensor, "classes channels height width"]:
    """The same of the classes' sums (float64) over so many images each."""
    size = counts.double()[:, None, None, None]
    means, rest = sums / size, (sums.sum(0) - sums) / (size.sum() - size)
    return (means - rest).float()


class DirectionEdit(MapEdit):
    """Adds the direction of the target class, times its strength.

    The directions were measured at the site. Where the gate reads the target class with probability p, the edit shrinks by
    1 − p.
    """

    def __init__(
        self,
        attribute: Attribute,
        directions: Float[Tensor, "classes steps channels height width"],
        *,
        site: Site,
        update: str,
        window: Window,
        gate: Probe | None = None,
    ) -> None:
        super().__init__(attribute, site=site, update=update, window=window, gate=gate)
        self.directions = directions

    def read(self, h: Float[Tensor, "images channels height width"]) -> Tensor:
        """The activations themselves.

        Raises:
            ValueError: they are no activations of the site the directions were measured at.
        """
        if h.shape[1:] != self.directions.shape[2:]:
            raise ValueError(
                f"the directions are of maps {list(self.directions.shape[2:])}, this site gives {list(h.shape[1:])}; "
                "use the model and site they were fitted on."
            )
        return super().read(h)

    def change(self, z: Tensor, step: int, target: Tensor, strength: Tensor, shown: Tensor | None = None) -> Tensor:
        """See `SiteEdit.change`."""
        if shown is not None:
            strength = strength * (1 - shown.to(strength).gather(1, target[:, None])[:, 0])
        return strength.to(z)[:, None, None, None] * self.directions[:, step].to(z)[target]
