import pytest
import torch

from difflens.methods.calibration import Calibration, Dose, calibrate

TARGET = torch.tensor([0.5, 0.5], dtype=torch.float64)


def world(threshold: tuple[float, float]) -> tuple[list[torch.Tensor], object]:
    """A set in which class c's images all show c once its strength reaches the threshold."""
    asked = []

    def measure(strength: torch.Tensor) -> Dose:
        asked.append(strength.clone())
        success = (strength.double() / torch.tensor(threshold)).clamp(0, 1)
        return Dose(strength.clone(), success, 0.3 + 0.2 * success, 0.3 + 0.2 * success)

    return asked, measure


def run(measure: object, **changed: float) -> Calibration:
    settings = {
        "neutral": 0.0,
        "first": 1.0,
        "largest": 16.0,
        "tolerance": 0.001,
        "refinements": 6,
        "images": 10**6,
        **changed,
    }
    return calibrate(measure, TARGET, **settings)  # type: ignore[arg-type]


def test_the_smallest_sufficient_strength_is_found_per_class_at_once() -> None:
    asked, measure = world((3.0, 0.7))
    found = run(measure)
    assert found.met == (True, True)
    assert 2.97 < float(found.strength[0]) < 3.1
    assert 0.69 < float(found.strength[1]) < 0.73
    assert len(asked) == 3 + 6 == len(found.doses)


def test_an_unreachable_share_is_reported_and_the_nearest_one_taken() -> None:
    def measure(strength: torch.Tensor) -> Dose:
        reached = 1 - (strength - 4).abs() / 20  # an edit beyond 4 does less again
        shares = torch.stack([0.4 * reached[0], 0.5 * (strength[1] >= 1)])
        return Dose(strength.clone(), reached, shares, shares)

    found = run(measure)
    assert found.met == (False, True)
    assert float(found.strength[0]) == 4.0


def test_a_class_nobody_is_pushed_to_stays_neutral() -> None:
    def measure(strength: torch.Tensor) -> Dose:
        enough = float(strength[0] >= 2)
        shares = torch.tensor([0.3 + 0.2 * enough, 0.7 - 0.2 * enough])
        return Dose(
            strength.clone(), torch.tensor([enough, torch.nan]), shares, torch.tensor([0.3 + 0.2 * enough, 0.5])
        )

    found = run(measure, neutral=1.0, first=0.5)
    assert float(found.strength[1]) == 1.0
    assert found.met == (True, True)


def test_strengths_are_measured_from_neutral() -> None:
    asked, measure = world((5.0, 5.0))
    run(measure, neutral=1.0, first=0.5, refinements=0)
    assert [float(strength[0]) for strength in asked] == [1.5, 2.0, 3.0, 5.0]


def test_an_impossible_bracket_is_refused() -> None:
    with pytest.raises(ValueError, match="0 < first"):
        run(world((1.0, 1.0))[1], first=20.0)


def test_nothing_is_refined_where_no_share_can_be_met() -> None:
    asked, measure = world((100.0, 100.0))
    assert run(measure).met == (False, False)
    assert len(asked) == 5


def test_strays_of_another_class_do_not_pass_for_success() -> None:
    def measure(strength: torch.Tensor) -> Dose:
        success = (strength.double() / torch.tensor([4.0, 1.0])).clamp(0, 1)
        held = 0.3 + 0.2 * success
        return Dose(strength.clone(), success, held + (0.5 - held).flip(0), held)

    found = run(measure)
    assert 3.97 < float(found.strength[0]) <= 4.1
    assert 0.98 < float(found.strength[1]) < 1.03


def test_the_margin_goes_beyond_what_just_sufficed_but_not_beyond_the_largest() -> None:
    _, measure = world((3.0, 10.0))
    plain, raised = run(measure), run(measure, margin=1.5)
    torch.testing.assert_close(raised.strength, (plain.strength * 1.5).clamp_max(16.0))
    assert run(measure, margin=4.0).strength.tolist() == [pytest.approx(4 * float(plain.strength[0])), 16.0]


def test_one_strength_for_all_classes_suffices_for_each_of_them() -> None:
    """The edit acts with the mean: calibrated class by class, the one that has enough would weaken it for the other."""

    def measure(strength: torch.Tensor) -> Dose:
        scale = float(strength.mean())
        shares = torch.tensor([min(0.5, 0.2 + 0.1 * scale), max(0.5, 0.8 - 0.1 * scale)], dtype=torch.float64)
        return Dose(strength.clone(), torch.ones(2), shares, shares)

    found = run(measure, together=True)
    assert found.met == (True, True) and float(found.strength.std()) == 0
    assert 2.99 <= float(found.strength.mean()) <= 3.05


def test_one_strength_is_also_that_of_a_class_nobody_is_pushed_to() -> None:
    def measure(strength: torch.Tensor) -> Dose:
        shares = torch.tensor([0.5, 0.5], dtype=torch.float64) * (float(strength.mean()) >= 2)
        return Dose(strength.clone(), torch.tensor([1.0, torch.nan]), shares, shares)

    found = run(measure, together=True, refinements=0)
    assert found.strength.tolist() == [2.0, 2.0], "at the mean of these two it was measured"


def test_one_strength_that_never_suffices_is_that_of_the_least_lack() -> None:
    def measure(strength: torch.Tensor) -> Dose:
        scale = float(strength.mean())
        shares = torch.tensor([0.45 - 0.02 * abs(scale - 4), 0.4 + 0.001 * scale], dtype=torch.float64)
        return Dose(strength.clone(), torch.ones(2), shares, shares)

    found = run(measure, together=True)
    assert found.met == (False, False) and found.strength.tolist() == [4.0, 4.0]


@pytest.mark.parametrize(("of_each", "missed", "met"), [(32, 1, True), (32, 2, False), (8, 1, False), (1, 1, False)])
def test_a_class_may_miss_one_image_where_the_tolerance_is_nearly_one(of_each: int, missed: int, met: bool) -> None:
    """Of 32 images 3 % are 0.96, of 8 they are a quarter: one of the former may be missed, none of the latter."""

    def measure(strength: torch.Tensor) -> Dose:
        held = torch.tensor([0.5, 0.5 - missed / (2 * of_each)], dtype=torch.float64)
        return Dose(strength.clone(), held * 2, held, held)

    found = calibrate(
        measure,
        torch.tensor([0.5, 0.5]),
        neutral=0.0,
        first=1.0,
        largest=4.0,
        tolerance=0.03,
        refinements=0,
        images=2 * of_each,
    )
    assert found.met == (True, met)
