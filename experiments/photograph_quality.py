"""Is the photorealistic model what its card says? `uv run python experiments/photograph_quality.py`.

Draws samples as `model=mini_photo` does, reads them with both judges, and looks for the nearest of the faces trained on: of
those in the repository, or of all in a folder (`--faces outputs/photographs/photo_faces`). Writes figures and two pictures to
`outputs/photographs`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from difflens.cli.products import register_products
from difflens.main import conf_folder
from difflens.metrics.functional import wilson_interval
from difflens.miniature.photo_recipes import SURE, resized
from difflens.miniature.photographs import load_faces
from difflens.store.progress import progress
from difflens.study.values import built
from difflens.vocabulary import GenerationPlan

NEAREST = 8
"""Samples that are shown beside the faces most like them."""


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--seed", type=int, default=31_337)
    parser.add_argument("--faces")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    register_products(conf_folder())
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("config", overrides=["model=mini_photo", *options.overrides])
    model, extractor = built(cfg, "model"), built(cfg, "metric.extractor")
    judges = {role: built(cfg, f"judge.{role}") for role in ("labels", "scores")}
    plan = GenerationPlan(options.seed, torch.arange(options.images))
    images = torch.cat([batch.images for batch in progress(model.sample(plan), "samples")])
    images = (images * 255).round().byte()
    read = {role: _men(judge, images) for role, judge in judges.items()}
    first, second = read.values()
    sure = [torch.maximum(each, 1 - each) >= SURE for each in read.values()]
    agreed = (first > 0.5) == (second > 0.5)
    found: dict[str, object] = {
        "images": len(images),
        "seed": options.seed,
        "steps": cfg.model.steps,
        "both_sure": float((sure[0] & sure[1]).double().mean()),
        "both_sure_of_the_same": float((sure[0] & sure[1] & agreed).double().mean()),
        "agree": float(agreed.double().mean()),
    }
    for role, judge in judges.items():
        men = (read[role] > 0.5).sum()
        low, high = wilson_interval(men[None], len(images))
        found[role] = {"judge": judge.name, "men": float(men / len(images)), "interval": [float(low), float(high)]}
    trained = resized(load_faces(options.faces), images.shape[-1]) if options.faces else built(cfg, "metric.reference")
    trained = torch.cat([trained, trained.flip(-1)])
    outputs = Path("outputs/photographs")
    outputs.mkdir(parents=True, exist_ok=True)
    pairs = []
    descriptors, others = (_described(extractor, each) for each in (images, trained))
    for name, here, there in (
        ("descriptors", descriptors, others),
        ("pixels", images.flatten(1).float() / 255, trained.flatten(1).float() / 255),
    ):
        near, among = _nearest(here, there), _nearest(there[: len(there) // 2], there, apart=True)
        found[f"nearest_by_{name}"] = {
            "of_samples": near.values.quantile(torch.tensor([0.01, 0.5])).tolist(),
            "of_faces_trained_on": among.values.quantile(torch.tensor([0.01, 0.5])).tolist(),
        }
        closest = near.values.argsort()[:NEAREST]
        pairs.append(torch.stack([images[closest], trained[near.indices[closest]]], 1).flatten(0, 1))
    _save(images[:64], outputs / "samples.png", columns=8)
    _save(torch.cat(pairs), outputs / "nearest.png", columns=NEAREST)
    (outputs / "quality.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def _described(extractor: Any, images: Tensor) -> Tensor:
    return torch.cat([extractor(part.float() / 255) for part in images.split(256)])


def _men(judge: Any, images: Tensor) -> Tensor:
    """The probability that each is a man."""
    logits = torch.cat([judge(part.float() / 255)["gender"] for part in images.split(64)])
    return logits.double().softmax(-1)[:, judge.classes["gender"].index("male")]


def _nearest(here: Tensor, there: Tensor, *, apart: bool = False) -> Any:
    """The distance and the row of the nearest; `apart`: other than itself and its mirror image, `there` being those twice."""
    distances = torch.cdist(here, there)
    if apart:
        rows = torch.arange(len(here))
        distances[rows, rows] = distances[rows, rows + len(here)] = torch.inf
    return distances.min(1)


def _save(images: Tensor, file: Path, *, columns: int) -> None:
    tiles = interpolate(images.float(), scale_factor=2, mode="nearest").byte().unflatten(0, (-1, columns))
    Image.fromarray(tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy()).save(file)


if __name__ == "__main__":
    main()
