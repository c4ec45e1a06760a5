"""Which measure tells half-transparent hair from hair, on exact faces: the model's denoising error, a judge, or features.

    uv run python experiments/ghosts.py

Every ghost has the factors of an exact render, with its hair blended from that of both genders. AUC: how often a ghost looks
worse than a render; 0.5 sees nothing.
"""

import argparse

import torch
from torch import Tensor

from difflens.miniature.clip import load_clip
from difflens.miniature.faces import render
from difflens.miniature.judges import load_judge
from difflens.miniature.population import named_population
from difflens.models.load import load_unconditional
from difflens.stages.oddness import denoising_errors, oddness
from difflens.vocabulary import Site

WEIGHTS = "package:miniature/weights"


def drawn(images: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Renders, ghosts and ragged faces (uint8 [N, 3, 32, 32]) of the same factors, and their genders [N]."""
    factors = named_population("balanced").sample(images, seed=seed)
    female, male = (render({**factors, "gender": torch.full((images,), index)}) for index in (0, 1))
    is_female = (factors["gender"] == 0)[:, None, None, None]
    own, other = torch.where(is_female, female, male), torch.where(is_female, male, female)
    swapped = torch.rand(images, 1, *own.shape[2:], generator=torch.Generator().manual_seed(seed)) < 0.1
    sets = {
        "render": own,
        "half over half": (own + other) / 2,
        "three quarters to one": 0.75 * own + 0.25 * other,
        "a tenth of the pixels": torch.where(swapped, other, own),
    }
    return {name: (each * 255).round().byte() for name, each in sets.items()}, factors["gender"]


def auc(usual: Tensor, odd: Tensor) -> float:
    """How often a value of the second is larger than one of the first."""
    return float(((odd[None] > usual[:, None]).double() + 0.5 * (odd[None] == usual[:, None]).double()).mean())


def main() -> None:
    """Print a line for every kind of face."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--seed", type=int, default=77)
    asked = parser.parse_args()
    model = load_unconditional(f"{WEIGHTS}/generator", name="mini_ddpm", steps=20, micro_batch=64)
    judge, extractor = load_judge(f"{WEIGHTS}/judge"), load_clip(f"{WEIGHTS}/clip")
    sets, gender = drawn(asked.images, asked.seed)
    known = extractor(render(named_population("biased").sample(512, seed=5))).double()
    found = {}
    for name, images in sets.items():
        pixels = images.float() / 255
        doubt = -judge(pixels)["gender"].softmax(-1).amax(-1)
        nearest = torch.cdist(extractor(pixels).double(), known).amin(1)
        found[name] = denoising_errors(model, images, Site("mid_block")), doubt, nearest
    errors, doubt, nearest = found["render"]
    print("face | oddness | AUC of the denoising error | of the judge's doubt | of the nearest neighbour")
    for name, (own, doubts, distances) in found.items():
        odd, usual = (oddness(each, gender, errors, gender) for each in (own, errors))
        areas = [auc(usual, odd), auc(doubt, doubts), auc(nearest, distances)]
        print(" | ".join([name, f"{float(odd.mean()):.1f}", *(f"{area:.2f}" for area in areas)]))


if __name__ == "__main__":
    main()
