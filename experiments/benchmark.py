"""Speed of what the project promises, as ratios within one run: `uv run python experiments/benchmark.py`.

Each figure is the median of several repetitions on otherwise quiet cores, with the two sides of a ratio taken in turn.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from difflens.attribution.base import AffineHead
from difflens.attribution.integrated_gradients import IntegratedGradients, OfficialIntegratedGradients
from difflens.attribution.statistics import CodeStatistics
from difflens.main import conf_folder
from difflens.mitigation.base import Window
from difflens.mitigation.holding import HoldingMitigation
from difflens.mitigation.sae_features import SaeFeatureMitigation
from difflens.models.base import DiffusionModel
from difflens.probes.linear import LinearProbe
from difflens.sae.topk import TopKAutoencoder
from difflens.types import UNTOUCHED, Attribute, FeatureSet, GenerationPlan, Site

GENDER = Attribute("gender", ("female", "male"))
AGE = Attribute("age", ("young", "adult", "old"))
RACE = Attribute("race", ("White", "Black", "Asian", "Indian"))


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


def study(model: DiffusionModel, attribute: Attribute, latents: range, **settings: Any) -> SaeFeatureMitigation:
    """An edit of the size of the default run's, of random weights: time does not depend on them."""
    channels, height, width = model.site_shape(Site())
    classes, chosen = len(attribute.classes), tuple(latents)
    torch.manual_seed(0)
    usual = CodeStatistics(
        torch.tensor(chosen),
        torch.rand(classes, model.steps, len(chosen), height, width),
        torch.ones(model.steps, len(chosen)),
    )
    return SaeFeatureMitigation(
        TopKAutoencoder(channels, expansion=8, k=32).requires_grad_(False).eval(),
        FeatureSet(attribute, {name: chosen[i::classes] for i, name in enumerate(attribute.classes)}),
        usual,
        site=Site(),
        mode="contrast",
        strength=torch.ones(classes),
        gate=LinearProbe(model.steps, classes, channels * height * width),
        **settings,
    )


def steering(model: DiffusionModel, cfg: DictConfig) -> dict[str, dict[str, float]]:
    """Sampling with every image edited as in the default run, in all steps or with the symmetric update, and untouched."""
    ids, window = torch.arange(model.micro_batch), instantiate(cfg.mitigation.window)

    def sample(target: int, **settings: Any) -> Callable[[], object]:
        top, hold = cfg.attribution.top, cfg.mitigation.hold
        edit = study(model, GENDER, range(2 * top), **{"window": window, **settings})
        held = [study(model, a, range(1, 1 + hold.top * len(a.classes))) for a in (AGE, RACE)]
        holding = HoldingMitigation(edit, held, ratio=hold.ratio)
        targets = holding.aims(torch.full_like(ids, target), torch.zeros(len(ids), 2, dtype=torch.int64))
        return lambda: list(model.sample(GenerationPlan(0, ids, targets), edit=holding))

    plain = lambda: list(model.sample(GenerationPlan(0, ids)))  # noqa: E731
    cases = {
        "as in the default run": sample(0),
        "in every step": sample(0, window=Window()),
        "symmetric": sample(0, update="symmetric"),
        "untouched": sample(UNTOUCHED),
    }
    return {name: ratio(work, plain, 5) for name, work in cases.items()}


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
        "sampling with an edit / plain": steering(model, cfg),
        "official attribution / closed form": attribution(shape),
        "dense decode / sparse": decoding(shape[0]),
    }
    path = Path("outputs") / "benchmark.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
