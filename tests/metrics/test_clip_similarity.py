"""CLIP-I pairs by image id, CLIP-T by row; both on both scales."""

import pytest
import torch
from torch import Tensor

from difflens.metrics.clip import ClipSimilarity, PromptSimilarity


def embeddings(n: int, seed: int) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def test_permuted_ids_pair_with_their_own_originals() -> None:
    originals, edited, ids = embeddings(20, 0), embeddings(20, 1), torch.arange(20) * 3 + 7
    expected = float(torch.cosine_similarity(originals.double(), edited.double()).mean())
    a, b = (torch.randperm(20, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3))
    metric = ClipSimilarity(originals[a], ids[a])
    for rows in b.split(6):
        metric.update(edited[rows], ids[rows])
    result = metric.compute()
    assert result.cosine == pytest.approx(expected, rel=1e-13) and result.n == 20
    assert result.paper == pytest.approx((expected + 1) / 2, rel=1e-13)
    assert abs(expected - float(torch.cosine_similarity(originals[a], edited[b]).mean())) > 1e-3
    whole = ClipSimilarity(originals, ids)
    whole.update(edited, ids)
    assert whole.compute() == result


def test_unchanged_images_score_one_and_opposite_ones_minus_one() -> None:
    originals, ids = embeddings(4, 0), torch.arange(4)
    for sign, cosine, paper in ((2.0, 1.0, 1.0), (-1.0, -1.0, 0.0)):
        metric = ClipSimilarity(originals, ids)
        metric.update(sign * originals, ids)
        assert metric.compute() == pytest.approx((cosine, paper, 4), abs=1e-12)


def test_ids_without_a_counterpart_are_errors_on_either_side() -> None:
    originals, ids = embeddings(4, 0), torch.tensor([5, 2, 9, 4])
    metric = ClipSimilarity(originals, ids)
    with pytest.raises(ValueError, match=r"\[3, 11\].*no counterpart"):
        metric.update(originals[:3], torch.tensor([9, 3, 11]))
    metric.update(originals[:3], ids[:3])
    with pytest.raises(ValueError, match=r"\[4\].*never given"):
        metric.compute()
    with pytest.raises(ValueError, match="rows"):
        metric.update(originals[:2], ids[3:])
    with pytest.raises(ValueError, match="repeats"):
        ClipSimilarity(originals, torch.tensor([1, 1, 2, 3]))


def test_merged_ranks_equal_one_process() -> None:
    originals, edited, ids = embeddings(9, 0), embeddings(9, 1), torch.arange(9)
    ranks = [ClipSimilarity(originals, ids) for _ in range(3)]
    ranks[0].update(edited[:4], ids[:4])
    ranks[1].update(edited[4:], ids[4:])
    ranks[1].set_dtype(torch.float16)
    for other in ranks[1:]:
        ranks[0].merge_state(other)
    whole = ClipSimilarity(originals, ids)
    whole.update(edited, ids)
    assert ranks[0].compute() == whole.compute()


def test_prompt_similarity_is_the_mean_over_images_not_over_batches() -> None:
    images, prompts = embeddings(7, 4), embeddings(7, 5)
    expected = float(torch.cosine_similarity(images.double(), prompts.double()).mean())
    metric = PromptSimilarity()
    metric.half()
    for i, p in zip(images.split(3), prompts.split(3), strict=True):
        metric.update(i, p)
    assert metric.compute() == pytest.approx((expected, (expected + 1) / 2, 7), rel=1e-13)
    with pytest.raises(ValueError, match="at least one"):
        PromptSimilarity().compute()
