import pytest
import torch

from difflens.miniature.faces import FACTORS, SIZE, render
from difflens.miniature.shapes import box, coverage, ellipse, ring


def random_faces(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randint(len(values), (n,), generator=generator) for name, values in FACTORS.items()}


def test_rendering_is_deterministic_and_independent_of_the_batch() -> None:
    faces = random_faces(20)
    images = render(faces)
    assert images.shape == (20, 3, SIZE, SIZE)
    assert float(images.min()) >= 0 and float(images.max()) <= 1
    for i in (0, 7, 19):
        assert torch.equal(render({name: index[i : i + 1] for name, index in faces.items()})[0], images[i])


@pytest.mark.parametrize("factor", FACTORS)
def test_every_value_of_every_factor_shows_under_all_values_of_the_others(factor: str) -> None:
    faces = random_faces(200)
    first = render(faces)
    for shift in range(1, len(FACTORS[factor])):
        changed = {**faces, factor: (faces[factor] + shift) % len(FACTORS[factor])}
        moved = (render(changed) - first).abs().amax(1)
        visible = (moved > 0.1).flatten(1).sum(1)
        assert int(visible.min()) >= 6, f"{factor} shifted by {shift} shows in {int(visible.min())} pixels only"


def test_pairs_differ_only_where_their_factor_is_drawn() -> None:
    faces = {**random_faces(100), "pose": torch.ones(100, dtype=torch.int64)}
    first = render(faces)
    rows = {"smile": slice(19, 27), "glasses": slice(12, 20)}
    for factor, allowed in rows.items():
        moved = (render({**faces, factor: 1 - faces[factor]}) - first).abs().amax((0, 1, 3)) > 0
        assert not moved[: allowed.start].any() and not moved[allowed.stop :].any()


def test_skin_tones_are_well_apart() -> None:
    faces = {name: torch.zeros(4, dtype=torch.int64) for name in FACTORS} | {"race": torch.arange(4)}
    faces["pose"], faces["age"] = torch.ones(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
    cheeks = render(faces)[:, :, 20, 12]
    distances = torch.cdist(cheeks, cheeks)[~torch.eye(4, dtype=torch.bool)]
    assert float(distances.min()) > 0.3


@pytest.mark.parametrize(
    "change", [{"gender": torch.tensor([2])}, {"gender": torch.tensor([0, 1])}, {"hat": torch.tensor([0])}]
)
def test_impossible_factors_are_refused(change: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="factor"):
        render({**random_faces(1), **change})


def test_coverage_measures_area() -> None:
    grid = torch.arange(64).float() + 0.5 - 32
    y, x = grid[None, :, None], grid[None, None, :].expand(1, 64, 64)
    y = y.expand(1, 64, 64)
    assert float(coverage(ellipse(x, y, 20.0, 10.0)).sum()) == pytest.approx(torch.pi * 200, rel=0.02)
    assert float(coverage(box(x, y, 12.0, 7.0)).sum()) == pytest.approx(24 * 14, rel=0.01)
    assert float(coverage(ring(x, y, 15.0, 4.0)).sum()) == pytest.approx(torch.pi * (17**2 - 13**2), rel=0.02)
