"""Activations recorded while a model sampled, in write-once shards on disk: read by step, by image or as tokens."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from safetensors import safe_open
from torch import Tensor

from difflens.models.model import DiffusionModel
from difflens.store.artifacts import shards_of
from difflens.vocabulary import Site


def expected_bytes(model: DiffusionModel, site: Site, images: int) -> int:
    """Size of a store of `images` images in half precision."""
    channels, height, width = model.site_shape(site)
    return images * model.steps * channels * height * width * 2


class ActivationStore:
    """The shards of one finished collection.

    Args:
        folder: holds `shard-*.safetensors`, each with activations [n, steps, D, H, W], images [n, 3, h, w], image_ids [n].

    Raises:
        ValueError: the folder holds no shard.
    """

    def __init__(self, folder: Path) -> None:
        self.shards = shards_of(folder)
        if not self.shards:
            raise ValueError(f"no activations in {str(folder)!r}; run `difflens task=activations` first.")
        # Opened and not read: a store may hold tens of GB, of which one step or one shard is read at a time.
        self._files = [safe_open(path, framework="pt") for path in self.shards]
        shapes = [file.get_slice("activations").get_shape() for file in self._files]
        self.sizes = [shape[0] for shape in shapes]
        self.steps, self.shape = shapes[0][1], tuple(shapes[0][2:])

    def __len__(self) -> int:
        return sum(self.sizes)

    @cached_property
    def image_ids(self) -> Int[Tensor, "images"]:
        """Ids of the stored images, in storage order."""
        return torch.cat([file.get_tensor("image_ids") for file in self._files])

    @cached_property
    def images(self) -> UInt8[Tensor, "images 3 height width"]:
        """The images these activations led to."""
        return torch.cat([file.get_tensor("images") for file in self._files])

    def at_step(self, step: int) -> Float[Tensor, "images channels height width"]:
        """Activations of all images at one step, half precision."""
        return torch.cat([file.get_slice("activations")[:, step] for file in self._files])

    def shard_at(self, shard: int, step: int) -> Float[Tensor, "images channels height width"]:
        """Activations of one shard's images at one step, half precision."""
        return self._files[shard].get_slice("activations")[:, step]


def as_tokens(maps: Float[Tensor, "images channels height width"]) -> Float[Tensor, "tokens channels"]:
    """Maps as one vector per spatial position."""
    return maps.flatten(2).mT.flatten(0, 1)


def split_by_image(images: int, validation: float, *, seed: int) -> tuple[Sequence[int], Sequence[int]]:
    """Positions of training and validation images: a seeded split of images, never of tokens."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed)).tolist()
    # Tokens of one image are alike: split among them, the SAE would be measured on what it was trained on.
    # One image at least is held out, or there is no health to measure.
    held = max(1, round(images * validation))
    return sorted(order[held:]), sorted(order[:held])
