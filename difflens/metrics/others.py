"""Images that a judge places outside of an attribute's classes, so that no table leaves them out unsaid."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from difflens.judges.protocol import faces_found, other_share


class Others(NamedTuple):
    """Of n images with a face: how many have their most probable class outside, and the mean probability outside.

    FD is measured on all n, conditionally on the attribute's classes (see `select_classes`).
    """

    images: int
    probability: float
    n: int


def count_others(logits: Float[Tensor, "images all"], columns: Int[Tensor, "classes"]) -> Others:
    """What lies outside `columns` of a judge's logits [N, all its classes]; rows of NaN are images without a face.

    Raises:
        ValueError: no image has a face.
    """
    seen = logits[faces_found(logits)]
    if len(seen) == 0:
        raise ValueError(f"none of {len(logits)} images has a face; look at them, or change the judge's `faces`.")
    outside = (seen.argmax(-1)[:, None] != columns.to(seen.device)).all(-1)
    return Others(int(outside.sum()), other_share(logits, columns), len(seen))
