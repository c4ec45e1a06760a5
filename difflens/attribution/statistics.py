"""What the selected latents usually do in images of each class: the scale on which an edit's strength is read."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.sae.base import SparseAutoencoder


class CodeStatistics(NamedTuple):
    """Activity of the selected latents.

    Attributes:
        latents: which latents [L].
        mean: mean code at every position in images of each class, other attributes held even [C, steps, L, H, W].
        level: mean activation where the latent fired [steps, L]; zero if it never did.
    """

    latents: Int[Tensor, "selected"]
    mean: Float[Tensor, "classes steps selected height width"]
    level: Float[Tensor, "steps selected"]


def effect_coding(labels: Int[Tensor, "images attributes"], sizes: Sequence[int]) -> Float[Tensor, "images effects"]:
    """A constant, and for each attribute one column per class but the last, whose images count −1: effects sum to zero."""
    columns = [torch.ones(len(labels), 1, dtype=torch.float64)]
    for attribute, size in enumerate(sizes):
        one_hot = torch.nn.functional.one_hot(labels[:, attribute], size).double()
        # With −1 in the last class the constant is the mean over classes, not over images, whatever their numbers.
        columns.append(one_hot[:, :-1] - one_hot[:, -1:])
    return torch.cat(columns, 1)


@torch.no_grad()
def code_statistics(
    sae: SparseAutoencoder,
    latents: Int[Tensor, "selected"],
    batches: Iterable[tuple[Tensor, Tensor, int]],
    *,
    sizes: Sequence[int],
    steps: int,
) -> CodeStatistics:
    """Statistics over batches (maps [n, D, H, W], labels [n, attributes], step), whatever the batches.

    The class means are those of a least-squares fit of the codes to the main effects of all attributes, so that what one
    class happens to share with another attribute in these images is not taken for its own. Labels of the attribute under
    study come first; `sizes` are the numbers of classes.
    """
    effects = 1 + sum(size - 1 for size in sizes)
    squares = torch.zeros(steps, effects, effects, dtype=torch.float64)
    level, fired = (torch.zeros(steps, len(latents), dtype=torch.float64) for _ in range(2))
    products: Tensor | None = None
    for maps, labels, step in batches:
        codes = sae.codes_of_latents(maps.float(), latents).double()
        if products is None:
            products = torch.zeros(steps, effects, *codes.shape[1:], dtype=torch.float64)
        design = effect_coding(labels, sizes)
        # Normal equations, summed batch by batch: all images' codes at every step would not fit into memory.
        squares[step] += design.T @ design
        products[step] += torch.einsum("ne,nlhw->elhw", design, codes)
        level[step] += codes.sum((0, 2, 3))
        fired[step] += (codes > 0).sum((0, 2, 3))
    assert products is not None, "no batch"
    # `pinv`: other attributes may lack a class in these images, or two may always go together; XᵀX is then singular.
    fitted = torch.linalg.pinv(squares, hermitian=True) @ products.flatten(2)
    # Effects sum to zero, so the last class has minus the sum of the others. Those of other attributes are left
    # out, which holds these attributes even.
    own = fitted[:, 1 : sizes[0]]
    means = fitted[:, :1] + torch.cat([own, -own.sum(1, keepdim=True)], 1)
    return CodeStatistics(
        latents,
        means.unflatten(2, products.shape[2:]).movedim(1, 0).float().contiguous(),
        (level / fired.clamp_min(1)).float(),
    )
