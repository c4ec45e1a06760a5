"""Reference images for FID and KID, from a folder: their features, computed once and kept with their hash."""

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from difflens.data.folder import ImageFolder
from difflens.judges.protocol import FeatureExtractor, ReferenceStatistics
from difflens.judges.weights import free
from difflens.store.artifacts import ArtifactStore


class Reference(NamedTuple):
    """Features [n, dim] in the order of the images' names, and their statistics."""

    features: Float[Tensor, "images dim"]
    statistics: ReferenceStatistics


def collect_features(
    images: ImageFolder, extractor: FeatureExtractor, *, batch: int = 64
) -> Float[Tensor, "images dim"]:
    """Features [n, dim] (float32) of a folder's images, which are never all in memory."""
    parts = images.batches(batch)
    return torch.cat([extractor(torch.from_numpy(part.pixels).float() / 255).cpu() for part in parts])


def collect_reference(
    images: ImageFolder, extractor: FeatureExtractor, *, store: ArtifactStore, batch: int = 64
) -> Reference:
    """The folder's reference for an extractor: read from the store if the same images went through the same network.

    Raises:
        ValueError: there is only one image.
        ArtifactError: what the store holds is damaged.
    """
    made = {"name": extractor.name, "resize": extractor.resize, "fingerprint": extractor.fingerprint}  # type: ignore[attr-defined]
    # What decides the features: the images' bytes and the network's weights, not where either of them lies.
    spec = {"images": images.sha256, "n": len(images.files), "extractor": made}

    def make(folder: Path) -> None:
        save_file({"features": collect_features(images, extractor, batch=batch)}, folder / "features.safetensors")
        # Nothing is asked of it any more, and memory may have room for one network at a time.
        free(extractor)

    artifact, _ = store.get_or_create("reference", spec, make)
    features = load_file(artifact.folder / "features.safetensors")["features"]
    statistics = ReferenceStatistics.from_features(features, extractor=extractor.name, resize=extractor.resize)
    return Reference(features, statistics)
