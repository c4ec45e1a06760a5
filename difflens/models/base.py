"""The interface of a model under study, and what it asks of an edit."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from difflens.vocabulary import Branch, GenerationPlan, PerImage, Site

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
        self, h: Float[Tensor, "images channels height width"], step: int, images: PerImage
    ) -> Float[Tensor, "images channels height width"]:
        """The edited activations, on the device where `h` lies; rows whose target is `UNTOUCHED` come back bit for bit."""
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
    default_branch: Branch = "none"
    """The branch of a site whose configuration names none."""

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
        prompts: Sequence[str] | None = None,
    ) -> float:
        """Mean squared error of the denoiser on images in [0, 1] noised to `step`, the site's activations changed or not.

        `prompts` holds one per image for a text-to-image model, which measures the branch of the site.
        """

    def check_update(self, update: str) -> None:  # noqa: B027
        """Check that the model's sampler can make an update; every sampler of an unconditional model can.

        Raises:
            ValueError: it cannot.
        """


PROVENANCE = {"architectures", "dtype", "transformers_version"}
"""Entries of a text encoder's configuration that say how it was saved, not what it computes."""


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256 (16 hex digits) of a module's configuration and weights."""
    config = getattr(module, "config", {})
    config = config if isinstance(config, Mapping) else config.to_dict()
    config = {key: value for key, value in config.items() if not key.startswith("_") and key not in PROVENANCE}
    return tensors_fingerprint(sorted(module.state_dict().items()), config=config)


def tensors_fingerprint(tensors: Iterable[tuple[str, Tensor]], *, config: Mapping[str, Any]) -> str:
    """SHA-256 (16 hex digits) of a configuration and of tensors in the order of their names, never all needed at once."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in tensors:
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
