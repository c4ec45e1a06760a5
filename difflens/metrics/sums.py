"""What the metrics share: float64/int64 sum states of fixed shape, and rows keyed by image id."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torchmetrics import Metric


class SumMetric(Metric):
    """A metric whose states are sums of fixed shape: batches, their order and ranks (also empty ones) only add up.

    States and buffers keep their dtype under `half()`, `set_dtype` and `to(dtype)`, also a parent's. `compute` speaks of
    what this process was given: in a distributed run every rank holds all images, and one alone measures them. Ranks
    that measured a part each are added up by `sync` or `merge_state`.
    """

    is_differentiable = False
    # Batches' sums add up: `forward` need not update twice, and without this `merge_state` refuses to work.
    full_state_update = False

    def __init__(self) -> None:
        # By default torchmetrics gathers from all ranks here, and a rank that measures alone would wait for ever.
        super().__init__(sync_on_compute=False)

    def add_sum(self, name: str, *shape: int, dtype: torch.dtype = torch.float64) -> None:
        """Adds a state of zeros, summed over ranks; `name` must be unique among the metrics of a collection."""
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            # A cast to half and back would lose digits, so the original tensor is moved instead.
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, exclude_state)


class RowMetric(SumMetric):
    """A sum metric with one row per image id, so that each image counts exactly once whatever the batches and ranks.

    Row i belongs to `image_ids[i]`, the ids to expect; `name` is the prefix of the state names.

    Raises:
        ValueError: there is no id, or one is repeated.
    """

    image_ids: Tensor

    def __init__(self, image_ids: Int[Tensor, "images"], *, name: str) -> None:
        super().__init__()
        if image_ids.ndim != 1 or len(image_ids) == 0 or len(torch.unique(image_ids)) < len(image_ids):
            raise ValueError("the expected image ids must be a non-empty vector without repeats.")
        self.register_buffer("image_ids", image_ids.clone(), persistent=False)
        self._seen = f"{name}_seen"
        self.add_sum(self._seen, len(image_ids), dtype=torch.int64)

    def take_rows(self, image_ids: Int[Tensor, "batch"], *batches: Any) -> Int[Tensor, "batch"]:
        """Rows of a batch, noted as seen; each of `batches` must have one row per id.

        Raises:
            ValueError: an id is unknown or came before, or a batch has another length.
        """
        lengths = {len(image_ids), *map(len, batches)}
        if len(lengths) > 1:
            raise ValueError(f"a batch of {len(image_ids)} image ids came with tensors of {sorted(lengths)} rows.")
        wanted = image_ids.to(self.image_ids)
        ordered, order = self.image_ids.sort()
        # An id beyond the largest is placed past the end; moved back, it is found to be another and refused.
        position = torch.searchsorted(ordered, wanted).clamp(max=len(ordered) - 1)
        unknown = wanted[ordered[position] != wanted]
        if len(unknown):
            raise ValueError(
                f"image ids {_some(unknown)} have no counterpart; use the same plan for both sets of images."
            )
        rows = order[position]
        seen = getattr(self, self._seen).index_add(0, rows, torch.ones_like(rows))
        # Before it is kept, so that a refused batch leaves the metric as it was.
        self._refuse_repeats(seen)
        setattr(self, self._seen, seen)
        return rows

    def require_all_rows(self) -> int:
        """The number of images, once each of them was seen exactly once on all ranks together.

        Raises:
            ValueError: an image came twice (a padded last batch does that) or not at all.
        """
        seen = getattr(self, self._seen)
        # Once more, for an image may have come on two ranks, which only their sum tells.
        self._refuse_repeats(seen)
        absent = self.image_ids[seen == 0]
        if len(absent):
            raise ValueError(f"images {_some(absent)} were never given; generate and score every id of the reference.")
        return len(self.image_ids)

    def _refuse_repeats(self, seen: Tensor) -> None:
        if bool((seen > 1).any()):
            repeated = _some(self.image_ids[seen > 1])
            raise ValueError(f"images {repeated} were given more than once; score each id once (no padded batches).")


def _some(ids: Tensor) -> str:
    shown = ", ".join(str(int(i)) for i in ids[:5])
    return f"[{shown}{', …' if len(ids) > 5 else ''}] ({len(ids)} in all)"
