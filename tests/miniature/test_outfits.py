"""Outfits show the profession, large, and hide none of the other factors."""

import pytest
import torch

from difflens.miniature.faces import FACTORS, WORKPLACE_FACTORS, render
from difflens.miniature.outfits import OUTFITS, PROFESSIONS
from difflens.miniature.population import Population

N = 216


def dressed(seed: int = 0) -> dict[str, torch.Tensor]:
    return {**Population().sample(N, seed=seed), "profession": torch.arange(N) % len(PROFESSIONS)}


def test_no_profession_leaves_the_picture_as_it_is() -> None:
    faces = Population().sample(40, seed=0)
    assert torch.equal(render({**faces, "profession": torch.zeros(40, dtype=torch.int64)}), render(faces))


def test_the_picture_of_a_face_does_not_depend_on_the_others() -> None:
    faces = dressed()
    images = render(faces)
    for i in (1, 50, 214):
        assert torch.equal(render({name: index[i : i + 1] for name, index in faces.items()})[0], images[i])


@pytest.mark.parametrize("factor", FACTORS)
def test_every_factor_shows_under_every_outfit(factor: str) -> None:
    faces = dressed()
    first = render(faces)
    for shift in range(1, len(FACTORS[factor])):
        changed = {**faces, factor: (faces[factor] + shift) % len(FACTORS[factor])}
        visible = ((render(changed) - first).abs().amax(1) > 0.1).flatten(1).sum(1)
        assert int(visible.min()) >= 6, f"{factor} shifted by {shift} shows in {int(visible.min())} pixels only"


def test_headgear_stays_above_the_face_and_uniforms_below_it() -> None:
    faces = {**dressed(), "profession": torch.zeros(N, dtype=torch.int64)}
    bare = render(faces)
    for index in range(1, len(PROFESSIONS)):
        moved = (render({**faces, "profession": torch.full((N,), index)}) - bare).abs().amax((0, 1, 3)) > 0
        assert not moved[9:23].any() and moved[:8].any() and moved[28:].all()


def test_outfits_differ_more_than_genders_do() -> None:
    faces = dressed()
    female, male = (render({**faces, "gender": torch.full((N,), value)}) for value in range(2))
    genders = (female - male).square().flatten(1).sum(1).mean()
    worn = [render({**faces, "profession": torch.full((N,), index)}) for index in range(1, len(PROFESSIONS))]
    for i, first in enumerate(worn):
        for second in worn[:i]:
            assert (first - second).square().flatten(1).sum(1).mean() > genders


def test_an_unknown_profession_is_refused() -> None:
    assert WORKPLACE_FACTORS["profession"] == ("none", *OUTFITS)
    with pytest.raises(ValueError, match="'profession' takes an index from 0 to 8"):
        render({**dressed(), "profession": torch.full((N,), 9)})
