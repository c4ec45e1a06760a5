"""Is the miniature's generator what its card says? `uv run python experiments/miniature_quality.py`.

Draws 2,048 samples at 50 DDIM steps, reads them with the second judge, and compares the class shares with the population the
model was trained on; writes `outputs/miniature_quality.json` and a grid of samples beside it.
"""

import argparse
import json
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from difflens.cli.products import register_products
from difflens.main import conf_folder
from difflens.metrics.functional import wilson_interval
from difflens.miniature.population import named_population
from difflens.store.progress import progress
from difflens.study.values import built
from difflens.vocabulary import GenerationPlan

STUDIED = ("gender", "age", "race")


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=31_337)
    parser.add_argument("--folder", default="package:miniature/weights/generator")
    options = parser.parse_args()
    register_products(conf_folder())
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        overrides = [f"model.steps={options.steps}", f"model.folder={options.folder}"]
        cfg = compose("config", overrides=overrides)
    model, judge, population = built(cfg, "model"), built(cfg, "judge.scores"), named_population("biased")
    plan = GenerationPlan(options.seed, torch.arange(options.images))
    images = torch.cat([batch.images for batch in progress(model.sample(plan), "samples")])
    logits = judge(images)
    found: dict[str, object] = {"images": options.images, "steps": options.steps, "seed": options.seed}
    for name in STUDIED:
        p = logits[name].double().softmax(-1)
        counts = torch.bincount(p.argmax(-1), minlength=p.shape[1])
        shares, trained = counts.double() / len(p), population.share_vector(name)
        low, high = wilson_interval(counts, len(p))
        found[name] = {
            "trained": trained.tolist(),
            "shares": shares.tolist(),
            "interval": [low.tolist(), high.tolist()],
            "largest_difference": float((shares - trained).abs().max()),
            "confident_0.9": float((p.amax(-1) >= 0.9).double().mean()),
        }
    outputs = Path("outputs")
    outputs.mkdir(exist_ok=True)
    (outputs / "miniature_quality.json").write_text(json.dumps(found, indent=2) + "\n")
    rows = max(1, min(8, len(images) // 12))
    tiles = torch.nn.functional.interpolate(images[: rows * 12], scale_factor=3).unflatten(0, (rows, -1))
    sheet = (tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1) * 255).round().byte()
    Image.fromarray(sheet.numpy()).save(outputs / "miniature_samples.png")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
