"""What a model under study, a method that changes its images, and an edit of its activations ask of each other."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from difflens.vocabulary import PerImage, Site

if TYPE_CHECKING:
    from difflens.models.model import DiffusionModel

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


@dataclass
class Batch:
    """The images of one call of a pipeline, which a method may change before the call is made.

    Args:
        images: what is known of each, padded to the micro-batch, on the model's device.
        latents: the initial noise [n, C, H, W].
        prompts: one for each image, None for an unconditional model.
        generators: of the noise that the sampler adds to each image, where a call of this model's own is made.
        settings: further arguments of the pipeline's call, such as `prompt_embeds` (with `prompts` set to None).
    """

    images: PerImage
    latents: Tensor
    prompts: list[str] | None = None
    generators: list[torch.Generator] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def texts(self, rows: Tensor) -> list[str] | None:
        """The prompts of the images at these positions."""
        return None if self.prompts is None else [self.prompts[row] for row in rows.tolist()]


@runtime_checkable
class Attachable(Protocol):
    """Whatever changes the images that a model makes: an edit of activations, of the estimate, of prompts or of noise."""

    def attach(self, model: "DiffusionModel", batch: Batch) -> AbstractContextManager[None]:
        """Entered around one call of the model's pipeline; leaving it undoes everything, also after an exception."""
        ...


class Generated(NamedTuple):
    """One micro-batch of samples: ids [n], images [n, 3, H, W] in [0, 1], activations [n, steps, D, H, W] or None.

    `flops` are the floating-point operations that all of it took, None where nobody counted.
    """

    image_ids: Tensor
    images: Tensor
    activations: Tensor | None
    flops: int | None = None


PROVENANCE = {"architectures", "dtype", "transformers_version"}
"""Entries of a text encoder's configuration that say how it was saved, not what it computes."""


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256 (16 hex digits) of a module's configuration and weights."""
    config = getattr(module, "config", {})
    # diffusers keeps a mapping, transformers an object.
    config = config if isinstance(config, Mapping) else config.to_dict()
    # Underscored entries say where and by which version it was saved.
    config = {key: value for key, value in config.items() if not key.startswith("_") and key not in PROVENANCE}
    return tensors_fingerprint(sorted(module.state_dict().items()), config=config)


def tensors_fingerprint(tensors: Iterable[tuple[str, Tensor]], *, config: Mapping[str, Any]) -> str:
    """SHA-256 (16 hex digits) of a configuration and of tensors in the order of their names, never all needed at once."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in tensors:
        digest.update(name.encode())
        # As bytes, since NumPy has no bfloat16, and flat, since a scalar cannot be viewed as bytes.
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def vocabulary_fingerprint(tokenizer: Any) -> str:
    """SHA-256 (16 hex digits) of a tokenizer's vocabulary and length."""
    # The length decides where prompts are cut off, and so what the denoiser is given.
    described = json.dumps([tokenizer.get_vocab(), tokenizer.model_max_length], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]
