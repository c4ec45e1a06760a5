import pytest
import torch

from difflens.methods.assignment import assign_exact, largest_remainder
from difflens.methods.quota import Quota, fewest_pushes
from difflens.vocabulary import UNTOUCHED

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
