"""The interface of a model under study, and what it asks of an edit."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difflens.types import GenerationPlan, Site

Update = Literal["asymmetric", "symmetric"]


@runtime_checkable
class Edit(Protocol):
    """A change of the activations at a site, made while sampling."""

    site: Site
    update: Update

    def active(self, step: int, steps: int) -> bool:
        """Whether step `step` of `steps` lies in the edit window."""
        ...

    def __call__(
        self, h: Float[Tensor, "images channels height width"], step: int, targets: Int[Tensor, "images"]
    ) -> Float[Tensor, "images channels height width"]:
        """The edited activations; rows whose target is `UNTOUCHED` come back bit for bit."""
        ...


class Generated(NamedTuple):
    """One micro-batch of samples: ids [n], images [n, 3, H, W] in [0, 1], activations [n, steps, D, H, W] or None."""

    image_ids: Tensor
    images: Tensor
    activations: Tensor | None


class DiffusionModel(ABC):
    """A diffusion model whose hidden states can be read and edited while it samples."""

    name: str
    steps: int
    micro_batch: int

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Everything that decides the samples: weights' fingerprint, scheduler, timesteps, precision, batch shape."""

    @abstractmethod
    def site_shape(self, site: Site) -> tuple[int, int, int]:
        """Channels, height and width of the activations at a site.

        Raises:
            ValueError: the denoiser has no such module, or it does not give a map of activations.
        """

    @abstractmethod
    def sample(
        self, plan: GenerationPlan, *, record: Site | None = None, edit: Edit | None = None
    ) -> Iterator[Generated]:
        """Generate the plan's images in full micro-batches, recording a site or editing it on the way.

        An image depends on (base seed, image id, micro-batch size) and its edit alone, never on its neighbours.
        """

    @abstractmethod
    def denoising_loss(
        self,
        images: Float[Tensor, "images 3 height width"],
        step: int,
        *,
        site: Site,
        change: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> float:
        """Mean squared error of the denoiser on images in [0, 1] noised to `step`, the site's activations changed or not."""


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256 (16 hex digits) of a module's configuration and weights."""
    config = {key: value for key, value in dict(getattr(module, "config", {})).items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
