import pytest
import torch

from difflens.methods.assignment import (
    assign_batches,
    assign_by_affinity,
    assign_exact,
    assign_iid,
    check_rule,
    largest_remainder,
)
from difflens.vocabulary import UNTOUCHED


def test_largest_remainder_is_whole_and_sums_up() -> None:
    assert largest_remainder(torch.tensor([1 / 3, 1 / 3, 1 / 3]), 512).sort().values.tolist() == [170, 171, 171]
    assert largest_remainder(torch.tensor([0.75, 0.25]), 10).tolist() == [8, 2]
    for n in range(40):
        assert int(largest_remainder(torch.tensor([0.5, 0.3, 0.2]), n).sum()) == n


def test_exact_quota_is_exact_and_shuffled() -> None:
    targets = assign_exact(torch.tensor([0.25, 0.75]), 400, seed=0)
    assert torch.bincount(targets).tolist() == [100, 300]
    assert 0 < int((targets[:100] == 0).sum()) < 60
    assert not torch.equal(targets, assign_exact(torch.tensor([0.25, 0.75]), 400, seed=1))


def test_iid_draws_follow_the_target() -> None:
    shares = torch.bincount(assign_iid(torch.tensor([0.2, 0.8]), 20_000, seed=0)) / 20_000
    assert abs(float(shares[0]) - 0.2) < 0.01


def test_a_batch_has_one_class_and_classes_follow_the_target() -> None:
    targets = assign_batches(torch.tensor([0.2, 0.8]), 16 * 5_000 + 3, size=16, seed=0)
    whole = targets[:-3].reshape(-1, 16)
    assert (whole == whole[:, :1]).all() and len(targets[-3:].unique()) == 1
    assert abs(float((whole[:, 0] == 0).double().mean()) - 0.2) < 0.02


def test_affinity_moves_the_fewest_images_and_the_nearest_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    current = torch.tensor([0] * 10 + [1] * 30)
    affinity = torch.randn(40, 2, generator=generator)
    targets = assign_by_affinity(torch.tensor([0.5, 0.5]), current, affinity)
    moved = targets != UNTOUCHED
    assert int(moved.sum()) == 10 and (targets[moved] == 0).all() and (current[moved] == 1).all()
    gain = affinity[:, 0] - affinity[:, 1]
    assert set(moved.nonzero()[:, 0].tolist()) == set((gain[10:].topk(10).indices + 10).tolist())


def test_affinity_meets_the_quotas_of_many_classes_with_the_best_total_gain() -> None:
    generator = torch.Generator().manual_seed(1)
    current = torch.tensor([0] * 6 + [1] * 1 + [2] * 1)
    affinity = torch.randn(8, 3, generator=generator)
    targets = assign_by_affinity(torch.tensor([2.0, 3.0, 3.0]) / 8, current, affinity)
    after = torch.where(targets == UNTOUCHED, current, targets)
    assert torch.bincount(after).tolist() == [2, 3, 3]
    assert int((targets != UNTOUCHED).sum()) == 4
    gain = affinity - affinity.gather(1, current[:, None])
    made = sum(float(gain[i, t]) for i, t in enumerate(targets.tolist()) if t != UNTOUCHED)
    import itertools

    best = max(
        sum(float(gain[i, c]) for i, c in zip(rows, classes, strict=True))
        for rows in itertools.combinations(range(6), 4)
        for classes in set(itertools.permutations([1, 1, 2, 2]))
    )
    assert made == pytest.approx(best, abs=1e-5)


def test_a_fair_set_is_left_alone() -> None:
    current = torch.tensor([0, 1, 0, 1])
    assert (assign_by_affinity(torch.tensor([0.5, 0.5]), current, torch.zeros(4, 2)) == UNTOUCHED).all()


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="'nearest'"):
        check_rule("nearest")
