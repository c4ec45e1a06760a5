"""Paired statistics: against closed forms, and by simulating what they promise."""

import math

import pytest
import torch

from difflens.metrics.paired import (
    Outcomes,
    compare_fd,
    compare_hits,
    compare_means,
    discrepancies,
    fd_interval,
    holm,
    mean_discrepancy,
    resamples,
)

EVEN = torch.tensor([0.5, 0.5], dtype=torch.float64)


def outcomes(shown: torch.Tensor, target: torch.Tensor | None = None) -> Outcomes:
    n = len(shown)
    return Outcomes(torch.arange(n), torch.zeros(n).long() if target is None else target, shown, {}, torch.ones(n))


def test_a_resample_of_groups_holds_whole_groups() -> None:
    rows = resamples(12, group=4, draws=50)
    assert rows.shape == (50, 12)
    starts = rows.view(50, 3, 4)[:, :, 0]
    assert torch.equal(rows.view(50, 3, 4), starts[..., None] + torch.arange(4)) and bool((starts % 4 == 0).all())


def test_discrepancies_of_the_images_themselves_are_fd_without_faces_left_out() -> None:
    shown = torch.tensor([0, 0, 0, 1, -2, -2])
    found = discrepancies(shown, EVEN, torch.arange(6)[None])
    assert float(found) == pytest.approx(math.sqrt(2) * 0.25)


SHARES = [(0.7, 0.3), (0.5, 0.5), (0.6, 0.2, 0.2), (1 / 3, 1 / 3, 1 / 3), (0.995, 0.005), (0.98, 0.015, 0.005)]


@pytest.mark.parametrize("shares", SHARES)
def test_the_interval_of_fd_holds_the_truth_of_biased_and_of_fair_samplers(shares: tuple[float, ...]) -> None:
    p = torch.tensor(shares, dtype=torch.float64)
    target = torch.full_like(p, 1 / len(p))
    truth, generator, inside = float((p - target).norm()), torch.Generator().manual_seed(0), 0
    for _ in range(100):
        low, high = fd_interval(
            torch.multinomial(p.float(), 200, replacement=True, generator=generator), target, draws=300
        )
        inside += low <= truth <= high
    assert inside >= 90, "95 % or more"


def test_biases_of_prompts_in_opposite_directions_do_not_cancel() -> None:
    prompt = torch.arange(2).repeat_interleave(50)
    fair, opposite = outcomes(torch.arange(100) % 2), outcomes(prompt.clone())
    assert mean_discrepancy(opposite.shown, EVEN, None) == 0
    assert mean_discrepancy(opposite.shown, EVEN, prompt) == pytest.approx(math.sqrt(0.5))
    low, high = fd_interval(opposite.shown, EVEN, prompt=prompt)
    assert 0.6 < low < high == pytest.approx(math.sqrt(0.5)) and fd_interval(opposite.shown, EVEN)[0] == 0
    found = compare_fd(opposite, fair, EVEN, prompt=prompt)
    assert found.difference == pytest.approx(math.sqrt(0.5)) and found.low > 0.4
    wanted = torch.eye(2, dtype=torch.float64)
    assert mean_discrepancy(opposite.shown, wanted, prompt) == 0, "each prompt has a target of its own"


@pytest.mark.parametrize(("first", "second"), [(0.4, 0.3), (0.5, 0.5), (0.5, 0.3)])
def test_the_interval_of_a_difference_holds_the_truth_of_two_methods_on_the_same_images(
    first: float, second: float
) -> None:
    generator, inside = torch.Generator().manual_seed(1), 0
    truth = math.sqrt(2) * (abs(first - 0.5) - abs(second - 0.5))
    for _ in range(100):
        noise, fresh = torch.rand(200, generator=generator), torch.rand(200, generator=generator)
        one = (noise < first).long()
        # Half of the images are left alone by the second method: pairs are neither equal nor independent.
        other = torch.where(torch.arange(200) % 2 == 0, noise, fresh).lt(second).long()
        found = compare_fd(outcomes(one), outcomes(other), EVEN, draws=300)
        inside += found.low <= truth <= found.high
    assert inside >= 90


def test_mcnemar_is_the_binomial_test_of_the_images_that_differ() -> None:
    one = torch.tensor([True] * 9 + [False] * 1 + [True] * 40)
    other = torch.tensor([False] * 9 + [True] * 1 + [True] * 40)
    found = compare_hits(one, other)
    assert found.difference == pytest.approx(8 / 50)
    assert found.p == pytest.approx(2 * (math.comb(10, 0) + math.comb(10, 1)) / 2**10)
    assert compare_hits(one, one).p == 1.0


def test_equal_methods_are_called_different_no_more_often_than_the_level_says() -> None:
    generator, called = torch.Generator().manual_seed(2), 0
    for _ in range(100):
        one, other = torch.randn(2, 100, generator=generator)
        p = compare_means(one, other, draws=300).p
        assert p is not None
        called += p < 0.05
    assert called <= 10


@pytest.mark.parametrize(("only_one", "only_other"), [(0.01, 0.0), (0.0, 0.0), (0.02, 0.01), (0.2, 0.1)])
def test_the_interval_of_a_difference_of_shares_holds_the_truth_also_where_hardly_an_image_differs(
    only_one: float, only_other: float
) -> None:
    generator, inside = torch.Generator().manual_seed(4), 0
    for _ in range(200):
        drawn = torch.rand(256, generator=generator)
        one, other = drawn < only_one, (drawn >= only_one) & (drawn < only_one + only_other)
        found = compare_hits(one, other)
        assert found.low < found.high
        inside += found.low <= only_one - only_other <= found.high
    assert inside >= 184, "95 % or more, but for the chance of 200 trials"
    apart = compare_hits(torch.ones(64).bool(), torch.zeros(64).bool())
    assert apart.low < apart.difference == apart.high == 1


def test_methods_that_couple_images_are_compared_by_groups() -> None:
    """Groups that flip as one: tests of single images would find differences in noise, which tests of groups do not."""
    drawn = torch.rand(200, 16, 2, generator=torch.Generator().manual_seed(2)) < 0.5
    found = [compare_hits(*(each.repeat_interleave(8) for each in trial.T), group=8).p for trial in drawn]
    single = [compare_hits(*(each.repeat_interleave(8) for each in trial.T)).p for trial in drawn]
    assert sum(p <= 0.05 for p in found) <= 20 < sum(p <= 0.05 for p in single)
    apart = compare_hits(torch.ones(128, dtype=torch.bool), torch.zeros(128, dtype=torch.bool), group=8)
    assert apart.p is not None and apart.p < 0.001
    values = torch.randn(16, generator=torch.Generator().manual_seed(3)).repeat_interleave(8)
    wide, narrow = (compare_means(values, torch.zeros(128), group=group) for group in (8, 1))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


@pytest.mark.parametrize("groups", [4, 6])
def test_few_groups_neither_call_equal_methods_different_nor_narrow_an_interval(groups: int) -> None:
    """Four micro-batches are all that a table of 256 images has of a method that couples 64."""
    generator, called, inside = torch.Generator().manual_seed(5), 0, 0
    for _ in range(200):
        values = torch.randn(groups, generator=generator).repeat_interleave(16) + torch.randn(
            16 * groups, generator=generator
        )
        found = compare_means(values, torch.zeros(16 * groups), group=16)
        assert found.p is not None
        called += found.p < 0.05
        inside += found.low <= 0 <= found.high
    assert called <= 18 and inside >= 184, "5 % and 95 %, but for the chance of 200 trials"
    alone = compare_means(torch.ones(16), torch.zeros(16), group=16)
    assert alone.p == 1 and alone.low == -math.inf and alone.high == math.inf


@pytest.mark.parametrize("prompts", [1, 2])
def test_intervals_of_fd_hold_the_truth_of_methods_that_couple_few_groups(prompts: int) -> None:
    generator, one, two = torch.Generator().manual_seed(6), 0, 0
    # Of two prompts of 80 images, the third of five micro-batches of 32 holds images of both.
    prompt = None if prompts == 1 else torch.arange(2).repeat_interleave(80)
    truth = math.sqrt(2) * 0.2
    fair = outcomes(torch.arange(160) % 2)
    for _ in range(100):
        # Every micro-batch has a share of its own, 0.7 in the mean.
        share = (0.7 + 0.15 * torch.randn(5, generator=generator)).repeat_interleave(32)
        shown = outcomes((torch.rand(160, generator=generator) >= share).long())
        low, high = fd_interval(shown.shown, EVEN, prompt=prompt, group=32, draws=300)
        one += low <= truth <= high
        found = compare_fd(shown, fair, EVEN, prompt=prompt, group=32, draws=300)
        two += found.low <= truth <= found.high
    assert one >= 91 and two >= 91


def test_groups_are_counted_over_all_prompts_and_one_alone_tells_nothing() -> None:
    rows = resamples(80, group=32, first=80, draws=200)
    # Images 80 to 159 lie in the micro-batches from 64, 96 and 128 on.
    starts = {int(row) for row in rows.view(200, 3, 32)[:, :, 0].flatten()}
    assert starts == {0, 16, 48}
    prompt = torch.arange(2).repeat_interleave(16)
    assert fd_interval(torch.arange(32) % 2, EVEN, prompt=prompt, group=32) == (0.0, pytest.approx(math.sqrt(0.5)))
    one = outcomes(torch.arange(32) % 2)
    assert compare_fd(one, one, EVEN, prompt=prompt, group=32).high == math.inf


def test_holm_is_as_in_the_paper() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_other_images_are_no_pairs() -> None:
    one = outcomes(torch.zeros(3).long())
    other = Outcomes(torch.tensor([0, 1, 3]), one.target, one.shown, {}, one.clip_i)
    with pytest.raises(ValueError, match="different ids"):
        compare_fd(one, other, EVEN)


def test_outcomes_are_stored_and_read_again() -> None:
    one = Outcomes(
        torch.arange(3),
        torch.tensor([0, -1, 1]),
        torch.tensor([0, 1, 0]),
        {"age": torch.tensor([True, False, False])},
        torch.tensor([0.5, 1.0, 0.25]),
    )
    again = Outcomes.of(one.tensors())
    assert again.reached.tolist() == [True, False, False] and again.edited.tolist() == [True, False, True]
    assert again.nothing_else.tolist() == [False, True, True]
