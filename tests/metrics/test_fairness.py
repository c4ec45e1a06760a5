"""Fairness metrics: agreement with the pure functions, faces that are missing, and any way of batching."""

import math

import pytest
import torch
from torch import Tensor

from difflens.metrics import functional
from difflens.metrics.fairness import FairnessDiscrepancy

CLASSES = ("young", "adult", "old")


def judged(n: int = 41, classes: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, classes, generator=torch.Generator().manual_seed(seed)) * 2 + torch.arange(classes) * 0.4


def feed(metric: FairnessDiscrepancy, logits: Tensor, batch: int) -> FairnessDiscrepancy:
    for part in logits.split(batch):
        metric.update(part)
    return metric


def test_result_equals_the_pure_functions() -> None:
    logits, q = judged(), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    result = feed(FairnessDiscrepancy(CLASSES, q), logits, 10).compute()
    p = logits.double().softmax(-1)
    hard = torch.nn.functional.one_hot(p.argmax(-1), 3).double()
    assert result.fd == pytest.approx(float((p.mean(0) - q).norm()), rel=1e-12)
    assert result.fd_hard == pytest.approx(float((hard.mean(0) - q).norm()), rel=1e-12)
    assert result.fd_chance == float(functional.chance_discrepancy(41, q))
    counts = p.argmax(-1).bincount(minlength=3)
    assert result.fd_squared_unbiased == pytest.approx(
        float(functional.unbiased_squared_discrepancy(counts / 41.0, q, n=41)), rel=1e-5
    )
    assert [share.share for share in result.shares.values()] == pytest.approx((counts / 41).tolist())
    assert [share.low for share in result.shares.values()] == functional.wilson_interval(counts, 41).low.tolist()
    assert sum(result.probabilities.values()) == pytest.approx(1) and (result.n, result.missing) == (41, 0)


def test_result_ignores_batches_order_and_dtype_casts() -> None:
    logits = judged()
    whole = feed(FairnessDiscrepancy(CLASSES), logits, 41).compute()
    split = feed(FairnessDiscrepancy(CLASSES), logits.flip(0), 3).compute()
    cast = FairnessDiscrepancy(CLASSES)
    parent = torch.nn.ModuleList([cast])
    cast.set_dtype(torch.float16)
    parent.half()
    parent.to(torch.bfloat16)
    for result in (split, feed(cast, logits, 5).compute()):
        assert result.fd == pytest.approx(whole.fd, rel=1e-13)
        assert result.shares == whole.shares and result.fd_hard == whole.fd_hard
    assert cast.fairness_probabilities.dtype == cast.target.dtype == torch.float64


@pytest.mark.parametrize("cut", [0, 17])
def test_merged_ranks_equal_one_process_even_if_one_saw_nothing(cut: int) -> None:
    logits = judged()
    ranks = [FairnessDiscrepancy(CLASSES), FairnessDiscrepancy(CLASSES)]
    for metric, part in zip(ranks, (logits[:cut], logits[cut:]), strict=True):
        if len(part):
            metric.update(part)
    ranks[1].merge_state(ranks[0])
    whole = feed(FairnessDiscrepancy(CLASSES), logits, 41).compute()
    assert ranks[1].compute().fd == pytest.approx(whole.fd, rel=1e-13)
    assert ranks[1].compute().shares == whole.shares


def test_missing_faces_are_counted_or_refused_but_never_dropped() -> None:
    logits = judged()
    logits[[3, 30]] = math.nan
    result = feed(FairnessDiscrepancy(CLASSES, missing="count"), logits, 8).compute()
    kept = feed(FairnessDiscrepancy(CLASSES), logits[logits.isfinite().all(-1)], 8).compute()
    assert (result.n, result.missing) == (39, 2)
    assert result.fd == pytest.approx(kept.fd, rel=1e-13) and result.shares == kept.shares
    with pytest.raises(ValueError, match="no face in 1 of 8"):
        feed(FairnessDiscrepancy(CLASSES), logits, 8)
    logits[3, 0] = 0.0
    with pytest.raises(ValueError, match="partly NaN"):
        feed(FairnessDiscrepancy(CLASSES, missing="count"), logits, 8)
    with pytest.raises(ValueError, match="'skip'"):
        FairnessDiscrepancy(CLASSES, missing="skip")  # type: ignore[arg-type]
    blind = feed(FairnessDiscrepancy(CLASSES, missing="count"), torch.full((4, 3), math.nan), 4)
    with pytest.raises(ValueError, match="4 without a face"):
        blind.compute()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 shares"):
        FairnessDiscrepancy(CLASSES, torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match=r"\[N, 3\]"):
        FairnessDiscrepancy(CLASSES).update(torch.zeros(4, 2))


def test_product_classes_are_given_as_joint_probabilities() -> None:
    gender, age = judged(41, 2, seed=1), judged(41, 3, seed=2)
    age[[3, 30]] = math.nan
    metric = FairnessDiscrepancy([f"{g} × {a}" for g in ("f", "m") for a in CLASSES], missing="count")
    metric.update(
        functional.product_probabilities([gender.double().softmax(-1), age.double().softmax(-1)]), probabilities=True
    )
    result, kept = metric.compute(), age.isfinite().all(-1)
    labels = (3 * gender.argmax(-1) + age.argmax(-1))[kept]
    assert result.fd_hard == pytest.approx(float((labels.bincount(minlength=6) / 39 - 1 / 6).norm()), rel=1e-6)
    assert result.shares["m × young"].share == pytest.approx(float((labels == 3).double().mean()))
    assert result.fd_maximum == pytest.approx(math.sqrt(5 / 6)) and (result.n, result.missing) == (39, 2)
