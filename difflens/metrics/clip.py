"""CLIP-I and CLIP-T: mean cosines of image embeddings with their counterpart's and with their prompt's."""

from typing import NamedTuple

import torch
from jaxtyping import Int, Num
from torch import Tensor

from difflens.metrics.functional import paired_cosine, paper_scale
from difflens.metrics.sums import RowMetric, SumMetric


class SimilarityResult(NamedTuple):
    """Mean cosine of n pairs, and the same on the paper's scale (cos + 1)/2."""

    cosine: float
    paper: float
    n: int


class ClipSimilarity(RowMetric):
    """CLIP-I: cosine of the embeddings of the same image id with and without mitigation; -1 to 1, higher is closer.

    >>> metric = ClipSimilarity(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([7, 8]))
    >>> metric.update(torch.tensor([[0.0, 3.0], [1.0, 1.0]]), torch.tensor([8, 7]))  # any order, paired by id
    >>> round(metric.compute().cosine, 4)
    0.8536

    Args:
        originals: embeddings of the unmitigated images [n, dim].
        image_ids: their ids [n], in any order.
    """

    clip_cosines: Tensor
    originals: Tensor

    def __init__(self, originals: Num[Tensor, "images dim"], image_ids: Int[Tensor, "ids"]) -> None:
        super().__init__(image_ids, name="clip")
        if len(originals) != len(image_ids):
            raise ValueError(f"{len(originals)} original embeddings came with {len(image_ids)} image ids.")
        self.register_buffer("originals", originals.double(), persistent=False)
        self.add_sum("clip_cosines", len(image_ids))

    def update(self, embeddings: Num[Tensor, "images dim"], image_ids: Int[Tensor, "ids"]) -> None:
        """Adds embeddings [N, dim] of the mitigated images with these ids [N].

        Raises:
            ValueError: an id has no original or came before.
        """
        cosines_of = embeddings.to(self.originals)
        rows = self.take_rows(image_ids, embeddings)
        self.clip_cosines = self.clip_cosines.index_add(0, rows, paired_cosine(cosines_of, self.originals[rows]))

    def compute(self) -> SimilarityResult:
        """Mean over all pairs (ValueError: an original has no mitigated counterpart)."""
        n = self.require_all_rows()
        # Summed in the order of ids: the same to the last bit, however the batches and ranks came.
        mean = self.clip_cosines[self.image_ids.argsort()].mean()
        return SimilarityResult(float(mean), float(paper_scale(mean)), n)


class PromptSimilarity(SumMetric):
    """CLIP-T: cosine of each image's embedding with its prompt's; -1 to 1, higher is more faithful.

    >>> metric = PromptSimilarity()
    >>> metric.update(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    >>> metric.compute().cosine
    1.0
    """

    prompt_cosines: Tensor
    prompt_n: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("prompt_cosines")
        self.add_sum("prompt_n", dtype=torch.int64)

    def update(self, images: Num[Tensor, "images dim"], prompts: Num[Tensor, "images dim"]) -> None:
        """Adds image embeddings [N, dim] and, row by row, those of their prompts."""
        # A sum and a count, since a mean of batches' means would give the images of a short last batch more weight.
        self.prompt_cosines = self.prompt_cosines + paired_cosine(images, prompts).sum().to(self.prompt_cosines)
        self.prompt_n = self.prompt_n + len(images)

    def compute(self) -> SimilarityResult:
        """Mean over all images (ValueError: no image came)."""
        n = int(self.prompt_n)
        if n == 0:
            raise ValueError("CLIP-T needs at least one image and prompt.")
        mean = self.prompt_cosines / n
        return SimilarityResult(float(mean), float(paper_scale(mean)), n)
