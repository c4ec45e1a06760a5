"""A generator tells a ghost from a face, where judges and CLIP see little amiss."""

import pytest
import torch

from difflens.miniature.faces import render
from difflens.miniature.population import named_population
from difflens.models.load import load_unconditional
from difflens.stages.localise import REAL
from difflens.stages.oddness import denoising_errors, oddness
from difflens.vocabulary import Site


def test_images_are_compared_with_originals_of_their_class() -> None:
    originals = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 10.0]], dtype=torch.float64)
    shown = torch.tensor([0, 0, 1])
    errors = torch.tensor([[2.0, 3.0], [10.0, 30.0], [14.0, 16.0]], dtype=torch.float64)
    found = oddness(errors, torch.tensor([0, 1, 2]), originals, shown)
    # No original shows the last class: it is compared with all three, whose means are 14/3 and 16/3.
    assert torch.allclose(found, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))


def test_half_transparent_hair_is_odd_to_the_model_and_real_hair_is_not() -> None:
    model = load_unconditional("package:miniature/weights/generator", name="m", steps=20, micro_batch=16)
    factors = named_population("balanced").sample(32, seed=3)

    def drawn(gender: int) -> torch.Tensor:
        return render({**factors, "gender": torch.full((32,), gender)})

    female, male = drawn(0), drawn(1)
    half, site = factors["gender"] == 0, Site("mid_block")
    real = torch.where(half[:, None, None, None], female, male)
    errors = {
        name: denoising_errors(model, (images * 255).round().byte(), site)
        for name, images in {"real": real, "other": real.flip(0), "ghost": (female + male) / 2}.items()
    }
    usual, shown = errors["real"], factors["gender"]
    assert float(oddness(errors["other"], shown.flip(0), usual, shown).mean()) == pytest.approx(1, abs=0.2)
    ghosts = oddness(errors["ghost"], shown, usual, shown)
    assert float(ghosts.mean()) > 2 * REAL and float((ghosts > REAL).double().mean()) > 0.9
