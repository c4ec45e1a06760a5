"""Every factor shows, under every value of the others and under every outfit, and where it should."""

import pytest
import torch
from torch import Tensor

from difflens.miniature.faces import FACTORS, PROFESSIONS, SIZE, WORKPLACE_FACTORS, box, coverage, ellipse, render, ring
from difflens.miniature.population import Population

N = 216
PLAIN = Population().sample(N, seed=0)
DRESSED = {**PLAIN, "profession": torch.arange(N) % len(PROFESSIONS)}


def changed(faces: dict[str, Tensor], **values: int) -> Tensor:
    """Pictures of these faces with factors of one value throughout."""
    return render({**faces, **{name: torch.full((N,), value) for name, value in values.items()}})


@pytest.mark.parametrize("faces", [PLAIN, DRESSED], ids=["plain", "dressed"])
def test_rendering_is_deterministic_and_independent_of_the_batch(faces: dict[str, Tensor]) -> None:
    images = render(faces)
    assert images.shape == (N, 3, SIZE, SIZE) and float(images.min()) >= 0 and float(images.max()) <= 1
    for i in (0, 50, 214):
        assert torch.equal(render({name: index[i : i + 1] for name, index in faces.items()})[0], images[i])


@pytest.mark.parametrize("faces", [PLAIN, DRESSED], ids=["plain", "dressed"])
@pytest.mark.parametrize("factor", FACTORS)
def test_every_value_shows_under_all_values_of_the_others(factor: str, faces: dict[str, Tensor]) -> None:
    first, values = render(faces), len(FACTORS[factor])
    for shift in range(1, values):
        moved = render({**faces, factor: (faces[factor] + shift) % values})
        visible = int(((moved - first).abs().amax(1) > 0.1).flatten(1).sum(1).min())
        assert visible >= 6, f"{factor} shifted by {shift} shows in {visible} pixels only"


def test_pairs_differ_only_where_their_factor_is_drawn() -> None:
    faces = {**PLAIN, "pose": torch.ones(N, dtype=torch.int64)}
    for factor, allowed in {"smile": slice(19, 27), "glasses": slice(12, 20)}.items():
        moved = (render({**faces, factor: 1 - faces[factor]}) - render(faces)).abs().amax((0, 1, 3)) > 0
        assert not moved[: allowed.start].any() and not moved[allowed.stop :].any()


def test_skin_tones_are_well_apart() -> None:
    middle = {name: torch.tensor([0 if name not in ("pose", "age") else 1] * 4) for name in FACTORS}
    cheeks = render({**middle, "race": torch.arange(4)})[:, :, 20, 12]
    assert float(torch.cdist(cheeks, cheeks)[~torch.eye(4, dtype=torch.bool)].min()) > 0.3


def test_headgear_stays_above_the_face_and_uniforms_below_it() -> None:
    bare = changed(PLAIN, profession=0)
    assert torch.equal(bare, render(PLAIN))
    for index in range(1, len(PROFESSIONS)):
        moved = (changed(PLAIN, profession=index) - bare).abs().amax((0, 1, 3)) > 0
        assert not moved[9:23].any() and moved[:8].any() and moved[28:].all()


def test_outfits_differ_more_than_genders_do() -> None:
    def distance(first: Tensor, second: Tensor) -> Tensor:
        return (first - second).square().flatten(1).sum(1).mean()

    genders = distance(changed(DRESSED, gender=0), changed(DRESSED, gender=1))
    worn = [changed(PLAIN, profession=index) for index in range(1, len(PROFESSIONS))]
    assert all(distance(first, second) > genders for i, first in enumerate(worn) for second in worn[:i])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gender": [2]}, "'gender' takes an index from 0 to 1"),
        ({"gender": [0, 1]}, "one index per face"),
        ({"hat": [0]}, "factors must be"),
        ({"profession": [9]}, "'profession' takes an index from 0 to 8"),
    ],
)
def test_impossible_factors_are_refused(change: dict[str, list[int]], message: str) -> None:
    one = {name: index[:1] for name, index in PLAIN.items()}
    with pytest.raises(ValueError, match=message):
        render({**one, **{name: torch.tensor(index) for name, index in change.items()}})
    assert set(WORKPLACE_FACTORS) - set(FACTORS) == {"profession"}


def test_coverage_measures_area() -> None:
    grid = torch.arange(64).float() + 0.5 - 32
    y, x = (axis.expand(1, 64, 64) for axis in (grid[None, :, None], grid[None, None, :]))
    assert float(coverage(ellipse(x, y, 20.0, 10.0)).sum()) == pytest.approx(torch.pi * 200, rel=0.02)
    assert float(coverage(box(x, y, 12.0, 7.0)).sum()) == pytest.approx(24 * 14, rel=0.01)
    assert float(coverage(ring(x, y, 15.0, 4.0)).sum()) == pytest.approx(torch.pi * (17**2 - 13**2), rel=0.02)
