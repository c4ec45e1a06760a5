"""Is the miniature Stable Diffusion what its card says? `uv run python experiments/miniature_sd_quality.py`.

Draws 256 samples of each profession at 50 steps and guidance 3, reads them with the second judge, and compares
the class shares with the population the model was trained on; then as many of prompts that name gender, age and race.
Says too how far off a perfect sampler would be by chance, which draws its samples from the population itself. Writes
`outputs/miniature_sd_quality.json` and a grid of samples beside it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import Tensor

from difflens.cli.products import register_products
from difflens.main import conf_folder
from difflens.miniature.captions import prompts as prompts_of
from difflens.miniature.faces import PROFESSIONS, WORKPLACE_FACTORS
from difflens.miniature.population import NAMEABLE, named_population, without_bias
from difflens.study.values import built
from difflens.vocabulary import GenerationPlan

BAR = 0.05
"""How far a class share of a prompt may be from the trained one."""


def perfect_sampler(distributions: list[list[float]], n: int, *, trials: int = 10_000) -> dict[str, float]:
    """The largest difference of a share over all these distributions when n samples of each are drawn from it."""
    generator = np.random.default_rng(0)
    drawn = [np.abs(generator.multinomial(n, p, size=trials) / n - p).max(1) for p in map(np.asarray, distributions)]
    worst = np.max(drawn, axis=0)
    return {"median_largest_off": float(np.median(worst)), "within_bar": float((worst <= BAR).mean())}


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--folder", default="package:miniature/weights/text_to_image/pipeline")
    options = parser.parse_args()
    register_products(conf_folder())
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        overrides = ["model=mini_sd", f"model.steps={options.steps}", f"model.source={options.folder}"]
        cfg = compose("config", overrides=overrides)
    model, judge, population = built(cfg, "model"), built(cfg, "judge.scores"), named_population("workplace")
    n, found, tiles, distributions = options.images, {}, [], []

    def sample(prompts: list[str], first: int) -> tuple[Tensor, dict[str, Tensor]]:
        plan = GenerationPlan(31_337, torch.arange(first, first + len(prompts)), prompts=tuple(prompts))
        images = torch.cat([batch.images for batch in model.sample(plan)])
        return images, {name: logits.argmax(-1) for name, logits in judge(images).items()}

    for number, profession in enumerate(PROFESSIONS[1:]):
        images, read = sample([f"a face of a {profession}"] * n, number * n)
        tiles.append(images[:12])
        row = {"obeyed": float((read["profession"] == PROFESSIONS.index(profession)).double().mean())}
        for name in NAMEABLE:
            shares = torch.bincount(read[name], minlength=len(WORKPLACE_FACTORS[name])).double() / n
            trained = population.conditional[name].shares[profession]
            off = max(abs(float(shares[i]) - trained[value]) for i, value in enumerate(WORKPLACE_FACTORS[name]))
            row |= {name: shares.tolist(), f"{name}_off": off}
            distributions.append(list(trained.values()))
        found[profession] = row
        print(profession, json.dumps(row), flush=True)
    names = ("profession", *NAMEABLE)
    faces = without_bias(population, NAMEABLE).sample(n, seed=7)
    _, read = sample(prompts_of(faces, {name: torch.ones(n, dtype=torch.bool) for name in names}), len(PROFESSIONS) * n)
    found["named"] = {name: float((read[name] == faces[name]).double().mean()) for name in names}
    found["perfect_sampler"] = perfect_sampler(distributions, n)
    print("named", json.dumps(found["named"]), "perfect sampler", json.dumps(found["perfect_sampler"]))
    outputs = Path("outputs")
    outputs.mkdir(exist_ok=True)
    (outputs / "miniature_sd_quality.json").write_text(json.dumps(found, indent=2) + "\n")
    grid = torch.nn.functional.interpolate(torch.cat(tiles), scale_factor=3).unflatten(0, (len(tiles), -1))
    sheet = (grid.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1) * 255).round().byte()
    Image.fromarray(sheet.numpy()).save(outputs / "miniature_sd_samples.png")


if __name__ == "__main__":
    main()
