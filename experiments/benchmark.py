"""Speed of what the project promises, as ratios within one run: `uv run python experiments/benchmark.py`.

Each figure is the median of several repetitions on otherwise quiet cores, with the two sides of a ratio taken in turn.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from difflens.attribution.base import AffineHead
from difflens.attribution.integrated_gradients import IntegratedGradients, OfficialIntegratedGradients
from difflens.attribution.statistics import CodeStatistics
from difflens.main import conf_folder
from difflens.mitigation.base import Window
from difflens.mitigation.sae_features import SaeFeatureMitigation
from difflens.models.base import DiffusionModel, Edit
from difflens.sae.topk import TopKAutoencoder
from difflens.types import UNTOUCHED, Attribute, FeatureSet, GenerationPlan, Site

GENDER = Attribute("gender", ("female", "male"))


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(work: Callable[[], object], reference: Callable[[], object], repeats: int) -> dict[str, float]:
    """Medians of both, taken in turn after one warm-up each, and the median of the ratios."""
    work(), reference()
    pairs = [(seconds(work), seconds(reference)) for _ in range(repeats)]
    return {
        "seconds": statistics.median(a for a, _ in pairs),
        "reference_seconds": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
    }


def steering(model: DiffusionModel, window: Window, latents_per_class: int) -> dict[str, dict[str, float]]:
    """Sampling with every image edited in the default run's window or the shorter one, and with none, over plain sampling."""
    channels, height, width = model.site_shape(Site())
    torch.manual_seed(0)
    sae = TopKAutoencoder(channels, expansion=8, k=32).requires_grad_(False).eval()
    latents = tuple(range(2 * latents_per_class))
    usual = CodeStatistics(
        torch.tensor(latents),
        torch.rand(2, model.steps, len(latents), height, width),
        torch.ones(model.steps, len(latents)),
    )
    features = FeatureSet(GENDER, {"female": latents[:latents_per_class], "male": latents[latents_per_class:]})
    ids = torch.arange(model.micro_batch)

    def sample(update: str | None, target: int, steps: Window) -> Callable[[], object]:
        edit: Edit | None = None
        if update:
            edit = SaeFeatureMitigation(
                sae, features, usual, site=Site(), mode="contrast", strength=torch.ones(2), update=update, window=steps
            )
        plan = GenerationPlan(0, ids, torch.full_like(ids, target))
        return lambda: list(model.sample(plan, edit=edit))

    plain, shorter = sample(None, UNTOUCHED, window), Window(window.start, 0.65)
    return {
        f"asymmetric, edited in steps {window.start} to {window.stop}": ratio(
            sample("asymmetric", 0, window), plain, 5
        ),
        f"asymmetric, edited in steps {shorter.start} to {shorter.stop}": ratio(
            sample("asymmetric", 0, shorter), plain, 5
        ),
        f"symmetric, edited in steps {window.start} to {window.stop}": ratio(sample("symmetric", 0, window), plain, 5),
        "asymmetric, untouched": ratio(sample("asymmetric", UNTOUCHED, window), plain, 5),
    }


def attribution(shape: tuple[int, int, int]) -> dict[str, float]:
    """Closed-form integrated gradients over the released code's ten backward passes on the same tensors."""
    channels, height, width = shape
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    head = AffineHead(draw(8 * channels, channels), draw(channels), draw(2, channels, height, width), draw(2))
    codes, labels = draw(64, 8 * channels, height, width).relu(), torch.arange(64) % 2
    official, closed = OfficialIntegratedGradients(), IntegratedGradients()
    return ratio(lambda: official(head, codes, labels), lambda: closed(head, codes, labels), 5)


def decoding(channels: int) -> dict[str, dict[str, float]]:
    """A dense decode over the sparse one, at several k."""
    found = {}
    x = torch.randn(4096, channels, generator=torch.Generator().manual_seed(0))
    for k in (8, 32, 128):
        sae = TopKAutoencoder(channels, expansion=8, k=k).requires_grad_(False).eval()
        codes = sae.encode(x)
        found[f"k={k}"] = ratio(
            lambda codes=codes, sae=sae: codes.dense(sae.width) @ sae.decoder,
            lambda codes=codes, sae=sae: sae.decode(codes),
            9,
        )
    return found


def main() -> None:
    """Run everything, print it, and keep it in `outputs/benchmark.json`."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("config")
    model: DiffusionModel = instantiate(cfg.model)
    shape = model.site_shape(Site())
    found = {
        "threads": torch.get_num_threads(),
        "sampling with an edit / plain": steering(model, instantiate(cfg.mitigation.window), cfg.attribution.top),
        "official attribution / closed form": attribution(shape),
        "dense decode / sparse": decoding(shape[0]),
    }
    path = Path("outputs") / "benchmark.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
