"""FID's Inception network on clean-fid's conventions (Parmar et al., 2022), from a local file."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from cleanfid.resize import build_resizer
from jaxtyping import Float
from torch import Tensor, nn

from difflens.judges.clip import OpenClipModel
from difflens.judges.faces import as_photographs
from difflens.judges.protocol import FeatureExtractor
from difflens.judges.weights import OnDemand, find_weights, free
from difflens.models.devices import check_device
from difflens.store.files import sha256_of
from difflens.store.fingerprints import fingerprint

SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""SHA-256 of NVIDIA's `inception-2015-12-05.pt`, the TorchScript file that clean-fid uses."""


class InceptionFeatures:
    """The 2048 pooled features of Inception v3 as a `FeatureExtractor`.

    Args:
        layers: gives the network when it is needed: images [N, 3, 299, 299] in [-1, 1) → features of 2048 values each.
        fingerprint: of the weights.
        device: where the network runs.
        batch: images at once.
    """

    name, dim, resize = "inception-2015-12-05", 2048, "clean-fid: 8 bit, Pillow bicubic in float32 to 299"

    def __init__(self, layers: OnDemand, *, fingerprint: str, device: str = "cpu", batch: int = 16) -> None:
        self.layers, self.fingerprint, self.device, self.batch = layers, fingerprint, device, batch
        # clean-fid's resizer alone: its own distance calls scipy's sqrtm with an argument that SciPy 1.18 has removed.
        self._resize = build_resizer("clean")

    @torch.inference_mode()
    def __call__(self, images: Float[Tensor, "images channels height width"]) -> Float[Tensor, "images dim"]:
        """Features [N, 2048] (float32, the images' device) of images in [0, 1]."""
        return torch.cat([self._features(chunk) for chunk in torch.split(images, self.batch)]).to(images.device)

    def free(self) -> None:
        """Give the network's memory back."""
        self.layers.free()

    def _features(self, images: Tensor) -> Tensor:
        # Pillow filters in 32-bit floats, unrounded: the choice of resizing alone moves FID (Parmar et al., 2022).
        resized = np.stack([self._resize(np.asarray(photograph)) for photograph in as_photographs(images)])
        pixels = torch.from_numpy(resized).permute(0, 3, 1, 2).to(self.device)
        # (x - 128) / 128, as clean-fid feeds this file, and not the usual x / 127.5 - 1.
        features: Tensor = self.layers()((pixels - 128) / 128)
        return features.reshape(len(images), self.dim).float()


def load_inception(
    weights: str, *, obtain: str, sha256: str | None = SHA256, device: str = "cpu", batch: int = 16
) -> InceptionFeatures:
    """The extractor of a user's `inception-2015-12-05.pt`.

    Raises:
        ValueError: the file is absent, has another SHA-256, or is no TorchScript file with `layers`; or there is no such
            device.
    """
    path = find_weights(weights, obtain=obtain, sha256=sha256)
    layers = OnDemand(partial(_load, path, check_device(device), obtain=obtain))
    # Once, so that a file of another kind is told before any image is made.
    layers()
    layers.free()  # it was looked at; images may be long in coming
    return InceptionFeatures(layers, fingerprint=sha256_of(path)[:16], device=device, batch=batch)


def _load(path: Path, device: torch.device, *, obtain: str) -> nn.Module:
    try:
        with warnings.catch_warnings():
            # torch warns that TorchScript will go; the published network is in no other format.
            warnings.simplefilter("ignore", FutureWarning)
            # `layers` alone, as in clean-fid: the whole file would resize the images once more.
            layers: nn.Module = torch.jit.load(str(path), map_location=device).eval().layers
    except (RuntimeError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{str(path)!r} is no TorchScript Inception with `layers` ({reason}); get: {obtain}"
        ) from error
    return layers


class PhotographFeatures:
    """One extractor for all measures of photographs: one network's features for FID and KID, CLIP's embeddings beside."""

    def __init__(self, features: FeatureExtractor, *, embeddings: OpenClipModel) -> None:
        self.features, self.embeddings = features, embeddings
        self.name, self.dim, self.resize = features.name, features.dim, features.resize
        parts = {"features": features.fingerprint, "embeddings": embeddings.fingerprint}  # type: ignore[attr-defined]
        self.fingerprint = fingerprint(parts)

    def __call__(self, images: Float[Tensor, "images channels height width"]) -> Float[Tensor, "images dim"]:
        """See `FeatureExtractor`."""
        return self.features(images)

    def embed_images(self, images: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n embed"]:
        """See `OpenClipModel.embed_images`."""
        return self.embeddings.embed_images(images)

    def embed_texts(self, texts: list[str]) -> Float[Tensor, "n embed"]:
        """See `OpenClipModel.embed_texts`."""
        return self.embeddings.embed_texts(texts)

    @property
    def parts(self) -> Mapping[str, tuple[Callable[[Tensor], dict[str, Tensor]], Callable[[], None]]]:
        """What is read off images by each network alone, the largest first, and how its memory is given back."""
        return {
            "embeddings": (lambda images: {"embeddings": self.embed_images(images)}, self.embeddings.free),
            "features": (lambda images: {"features": self.features(images)}, partial(free, self.features)),
        }

    def free(self) -> None:
        """Give both networks' memory back."""
        for _, give_back in self.parts.values():
            give_back()
