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
    for _ in range(150):
        low, high = fd_interval(
            torch.multinomial(p.float(), 200, replacement=True, generator=generator), target, draws=300
        )
        inside += low <= truth <= high
    assert inside >= 135, "95 % or more"


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
    for _ in range(150):
        noise, fresh = torch.rand(200, generator=generator), torch.rand(200, generator=generator)
        one = (noise < first).long()
        # Half of the images are left alone by the second method: pairs are neither equal nor independent.
        other = torch.where(torch.arange(200) % 2 == 0, noise, fresh).lt(second).long()
        found = compare_fd(outcomes(one), outcomes(other), EVEN, draws=300)
        inside += found.low <= truth <= found.high
    assert inside >= 135


def test_mcnemar_is_the_binomial_test_of_the_images_that_differ() -> None:
    one = torch.tensor([True] * 9 + [False] * 1 + [True] * 40)
    other = torch.tensor([False] * 9 + [True] * 1 + [True] * 40)
    found = compare_hits(one, other)
    assert found.difference == pytest.approx(8 / 50)
    assert found.p == pytest.approx(2 * (math.comb(10, 0) + math.comb(10, 1)) / 2**10)
    assert compare_hits(one, one).p == 1.0


def test_equal_methods_are_called_different_no_more_often_than_the_level_says() -> None:
    generator, called = torch.Generator().manual_seed(2), 0
    for _ in range(150):
        one, other = torch.randn(2, 100, generator=generator)
        p = compare_means(one, other, draws=300).p
        assert p is not None
        called += p < 0.05
    assert called <= 15


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


def test_images_that_are_all_coupled_are_one_draw_of_which_nothing_more_is_known() -> None:
    one, other = outcomes(torch.tensor([0, 0, 0, 1] * 4)), outcomes(torch.tensor([0, 1] * 8))
    found = compare_fd(one, other, EVEN, group=16)
    assert found.difference == pytest.approx(math.sqrt(2) * 0.25) and math.isnan(found.low) and math.isnan(found.high)
    for made in (
        compare_hits(one.shown > 0, other.shown > 0, group=16),
        compare_means(one.shown.float(), other.shown.float(), group=16),
    ):
        assert made.difference == -0.25 and math.isnan(made.low) and made.p is None
    assert fd_interval(one.shown, EVEN, group=16) == (0.0, pytest.approx(math.sqrt(0.5)))
    by_prompt = fd_interval(one.shown, EVEN, prompt=torch.arange(2).repeat_interleave(8), group=8)
    assert by_prompt == (0.0, pytest.approx(math.sqrt(0.5)))
    assert fd_interval(one.shown, EVEN, group=8)[1] < 0.7


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
