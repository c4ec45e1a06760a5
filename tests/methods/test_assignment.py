"""Who is moved: targets, quotas, and the fewest moves."""

import pytest
import torch

from difflens.methods.assignment import (
    Quota,
    assign_batches,
    assign_by_nearness,
    assign_exact,
    assign_iid,
    check_rule,
    fewest_pushes,
    largest_remainder,
    read_goals,
)
from difflens.vocabulary import UNTOUCHED, Attribute, product


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
    targets = assign_batches(torch.tensor([0.2, 0.8]), 16 * 5_000 + 3, seed=0)
    whole = targets[:-3].reshape(-1, 16)
    assert (whole == whole[:, :1]).all() and len(targets[-3:].unique()) == 1
    assert abs(float((whole[:, 0] == 0).double().mean()) - 0.2) < 0.02


def test_affinity_moves_the_fewest_images_and_the_nearest_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    current = torch.tensor([0] * 10 + [1] * 30)
    affinity = torch.randn(40, 2, generator=generator)
    targets = assign_by_nearness(torch.tensor([0.5, 0.5]), current, affinity)
    moved = targets != UNTOUCHED
    assert int(moved.sum()) == 10 and (targets[moved] == 0).all() and (current[moved] == 1).all()
    gain = affinity[:, 0] - affinity[:, 1]
    assert set(moved.nonzero()[:, 0].tolist()) == set((gain[10:].topk(10).indices + 10).tolist())


def test_affinity_meets_the_quotas_of_many_classes_with_the_best_total_gain() -> None:
    generator = torch.Generator().manual_seed(1)
    current = torch.tensor([0] * 6 + [1] * 1 + [2] * 1)
    affinity = torch.randn(8, 3, generator=generator)
    targets = assign_by_nearness(torch.tensor([2.0, 3.0, 3.0]) / 8, current, affinity)
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
    assert (assign_by_nearness(torch.tensor([0.5, 0.5]), current, torch.zeros(4, 2)) == UNTOUCHED).all()


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="'nearest'"):
        check_rule("nearest")


GENDER, AGE = Attribute("gender", ("female", "male")), Attribute("age", ("young", "adult", "old"))
PROMPTS = ("a doctor", "a nurse")


def test_a_product_takes_its_target_by_part_or_by_class() -> None:
    both = product([GENDER, AGE])
    assert both.classes[:4] == ("female+young", "female+adult", "female+old", "male+young")
    by_part = both.target({"gender": {"female": 0.75, "male": 0.25}})
    torch.testing.assert_close(by_part, torch.tensor([0.25] * 3 + [0.25 / 3] * 3, dtype=torch.float64))
    shares = {name: float(share) for name, share in zip(both.classes, by_part, strict=True)}
    torch.testing.assert_close(both.target(shares), by_part)
    with pytest.raises(ValueError, match="lacks a share for"):
        both.target({"female+old": 1.0})


def test_prompts_have_targets_of_their_own_or_equal_shares() -> None:
    goals = read_goals(GENDER, {"a doctor": {"female": 0.9, "male": 0.1}}, prompts=PROMPTS)
    assert goals.of("a doctor").tolist() == [0.9, 0.1] and goals.of("a nurse").tolist() == [0.5, 0.5]
    assert goals.pooled(["a doctor", "a nurse"]).tolist() == pytest.approx([0.7, 0.3])
    shared = read_goals(GENDER, {"female": 0.9, "male": 0.1}, prompts=PROMPTS)
    assert shared.of("a nurse").tolist() == shared.of(None).tolist() == [0.9, 0.1]
    both = product([GENDER, AGE])
    assert not read_goals(both, {"gender": {"female": 0.9, "male": 0.1}}, prompts=PROMPTS).own
    with pytest.raises(ValueError, match=r"names \['a pilot'\], which are no prompts of the study"):
        read_goals(GENDER, {"a pilot": {"female": 0.9, "male": 0.1}}, prompts=PROMPTS)


SHARES = [[0.5, 0.5], [0.75, 0.25], [1 / 3, 1 / 3, 1 / 3], [0.9, 0.1, 0.0]]


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("size", [1, 3, 7])
def test_after_every_call_the_counts_are_the_quota_of_all_images_so_far(shares: list[float], size: int) -> None:
    target = torch.tensor(shares, dtype=torch.float64)
    quota, given = Quota(target, seed=0), torch.empty(0, dtype=torch.int64)
    for call in range(100):
        given = torch.cat([given, quota(size)])
        counts = torch.bincount(given, minlength=len(shares))
        assert torch.equal(counts, largest_remainder(target, size * (call + 1)))


def test_one_call_is_the_exact_assignment_and_the_next_is_shuffled_anew() -> None:
    target = torch.tensor([0.5, 0.5], dtype=torch.float64)
    quota = Quota(target, seed=4)
    first, second = quota(32), quota(32)
    assert torch.equal(first, assign_exact(target, 32, seed=4)) and not torch.equal(first, second)
    assert not torch.equal(first, first.sort().values)


@pytest.mark.parametrize(
    ("target", "natural", "parts"),
    [
        ([0.5, 0.5], [0.3, 0.7], [0.5 - 0.3 / 1.4, 0, 1 / 1.4]),
        ([0.75, 0.25], [0.3, 0.7], [0.75 - 0.3 * 0.25 / 0.7, 0, 0.25 / 0.7]),
        ([1, 1, 1], [0.2, 0.6, 0.2], [2 / 9, 0, 2 / 9, 5 / 9]),
        ([0.3, 0.7], [0.3, 0.7], [0, 0, 1]),
        ([0.5, 0.5], [0, 1], [0.5, 0, 0.5]),
        ([1, 0], [0.5, 0.5], [1, 0, 0]),
    ],
)
def test_the_fewest_pushes_give_the_target_and_push_towards_no_class_that_is_too_frequent(
    target: list[float], natural: list[float], parts: list[float]
) -> None:
    wanted, own = torch.tensor(target, dtype=torch.float64), torch.tensor(natural, dtype=torch.float64)
    found = fewest_pushes(wanted, own)
    assert found.tolist() == pytest.approx(parts)
    assert torch.allclose(found[:-1] + found[-1] * own, wanted / wanted.sum())


def test_images_without_a_class_have_a_quota_too() -> None:
    quota = Quota(torch.tensor([0.25, 0.0, 0.75]), seed=0, untouched=True)
    given = torch.cat([quota(4) for _ in range(5)])
    assert {value: int((given == value).sum()) for value in given.unique().tolist()} == {UNTOUCHED: 15, 0: 5}


def test_where_the_quota_takes_an_image_back_the_shares_are_still_met() -> None:
    target = torch.tensor([0.4, 0.45, 0.15], dtype=torch.float64)
    owed = torch.stack([largest_remainder(target, n) for n in range(60)])
    assert bool((owed.diff(dim=0) < 0).any()), "no paradox"
    quota, counts = Quota(target, seed=0), torch.zeros(3, dtype=torch.int64)
    for n in range(1, 60):
        counts += torch.bincount(quota(1), minlength=3)
        assert int(counts.sum()) == n and (counts - n * target / target.sum()).abs().max() <= 1
