"""What a model samples, written micro-batch by micro-batch: whatever is finished is on disk and outlives a kill."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from safetensors import safe_open
from torch import Tensor

from difflens.models.base import Generated
from difflens.store.artifacts import is_finished, read_shard, shards_of, write_shard
from difflens.vocabulary import Site


class Shards:
    """Finished micro-batches in a folder, a shard each: image_ids [n], images [n, 3, H, W] (uint8), activations if at a site.

    The first also says how many floating-point operations it took, and so do others that may have taken more or less. The
    folder need not exist before the first is kept.
    """

    def __init__(self, folder: Path, site: Site | None = None) -> None:
        self.folder, self.site = folder, site

    def holds(self, number: int) -> bool:
        """Whether the micro-batch of this number is there, complete and undamaged."""
        return is_finished(self.folder, _name(number))

    def keep(self, number: int, batch: Generated) -> None:
        """Write the micro-batch of this number (ValueError: an activation is not finite)."""
        tensors = {"image_ids": batch.image_ids, "images": as_bytes(batch.images)}
        if batch.flops is not None:
            tensors["flops"] = torch.tensor(batch.flops)
        if self.site is not None:
            assert batch.activations is not None
            # Recorded in half precision, in which all beyond 65504 is infinite: said here, before an SAE trains on it.
            if not batch.activations.isfinite().all():
                raise ValueError(
                    f"activations at {self.site.module!r} are not finite in half precision; check the model's weights and "
                    "precision."
                )
            tensors["activations"] = batch.activations
        write_shard(self.folder, _name(number), tensors)

    def images(self, image_ids: Int[Tensor, "images"]) -> UInt8[Tensor, "..."]:
        """The images in the order of these ids, which are those of all shards: [N, 3, H, W], or [0] for none."""
        return in_order(image_ids, self._batches())

    def replaced(
        self, images: UInt8[Tensor, "images 3 height width"], image_ids: Int[Tensor, "images"]
    ) -> UInt8[Tensor, "images 3 height width"]:
        """A copy of these images of these ids with those of the shards in their places."""
        position, copy = _positions(image_ids), images.clone()
        for ids, part in self._batches():
            copy[[position[image_id] for image_id in ids.tolist()]] = part
        return copy

    @property
    def flops(self) -> float | None:
        """Floating-point operations that one micro-batch took in the mean, None where there is none or nobody counted."""
        counted = []
        for path in shards_of(self.folder):
            # The one number alone: most of a shard is its images.
            with safe_open(path, framework="pt") as shard:
                names = list(shard.keys())
                counted += [float(shard.get_tensor("flops"))] if "flops" in names else []
        return sum(counted) / len(counted) if counted else None

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for path in shards_of(self.folder):
            shard = read_shard(self.folder, path.stem)
            yield shard["image_ids"], shard["images"]


def as_bytes(images: Float[Tensor, "images 3 height width"]) -> UInt8[Tensor, "images 3 height width"]:
    """Images in [0, 1] with 8 bits."""
    # Rounded: `byte` alone cuts off, which darkens images by half a level.
    return (images * 255).round().byte()


def in_order(image_ids: Int[Tensor, "images"], batches: Iterable[tuple[Tensor, Tensor]]) -> UInt8[Tensor, "..."]:
    """The images of batches (ids, images) in the order of these ids, [0] for none; one batch beside them is held at once."""
    position, found = _positions(image_ids), 0
    images = torch.empty(0, dtype=torch.uint8)
    for ids, part in batches:
        # Written into one tensor as they come: a list of batches, joined at the end, would take twice the memory.
        if not found:
            images = part.new_empty(len(image_ids), *part.shape[1:])
        images[[position[image_id] for image_id in ids.tolist()]] = part
        found += len(ids)
    assert found == len(image_ids), f"{found} of {len(image_ids)} images were sampled"
    return images


def _positions(image_ids: Tensor) -> dict[int, int]:
    return {image_id: row for row, image_id in enumerate(image_ids.tolist())}


def _name(number: int) -> str:
    return f"shard-{number:05d}"
