"""Speed of what the project promises, as ratios within one run: `uv run python experiments/benchmark.py`.

Each figure is the median of several repetitions on otherwise quiet cores, with the two sides of a ratio taken in turn.
"""

import argparse
import contextlib
import importlib
import itertools
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

from difflens.attribution.heads import AffineHead
from difflens.attribution.scorers import IntegratedGradients, OfficialIntegratedGradients
from difflens.attribution.statistics import CodeStatistics
from difflens.cli.products import register_products
from difflens.main import conf_folder
from difflens.methods.base import Window
from difflens.methods.difflens import FeatureEdit
from difflens.models.model import DiffusionModel
from difflens.probes.linear import LinearProbe
from difflens.sae.topk import TopKAutoencoder
from difflens.study.values import plain, read_attribute
from difflens.training.sae_module import SaeModule
from difflens.vocabulary import UNTOUCHED, Attribute, FeatureSet, GenerationPlan, Site

PRESETS = ("gender", "age", "race")
"""Attributes studied on the miniature, each at the site, in the window and with the latents of its preset."""


Clock = Callable[[], float]


def seconds(work: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Seconds of one call, by the wall's clock unless another is given."""
    start = clock()
    work()
    return clock() - start


def ratio(
    work: Callable[[], object], reference: Callable[[], object], repeats: int, clock: Clock = time.perf_counter
) -> dict[str, float]:
    """Medians of both, taken in turn after one warm-up each, and the median of the ratios."""
    work(), reference()
    pairs = [(seconds(work, clock), seconds(reference, clock)) for _ in range(repeats)]
    return {
        "seconds": statistics.median(a for a, _ in pairs),
        "reference_seconds": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
    }


def settings_of(attribute: str, *overrides: str) -> DictConfig:
    """The configuration of an attribute's study on the miniature, with its preset."""
    register_products(conf_folder())
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", overrides=[f"attribute={attribute}", *overrides])


def study(model: DiffusionModel, cfg: DictConfig, attribute: Attribute, latents: range, **settings: Any) -> FeatureEdit:
    """An edit of the size of a study's, of random weights: time does not depend on them."""
    site, classes, chosen = instantiate(cfg.data.site), len(attribute.classes), tuple(latents)
    channels, height, width = model.site_shape(site)
    torch.manual_seed(0)
    usual = CodeStatistics(
        torch.tensor(chosen),
        torch.rand(classes, model.steps, len(chosen), height, width),
        torch.ones(model.steps, len(chosen)),
    )
    edit = FeatureEdit(
        TopKAutoencoder(channels, expansion=cfg.sae.expansion, k=cfg.sae.k).requires_grad_(False).eval(),
        FeatureSet(attribute, {name: chosen[i::classes] for i, name in enumerate(attribute.classes)}),
        usual,
        site=site,
        mode=cfg.mitigation.mode,
        gate=LinearProbe(model.steps, classes, channels * height * width),
        **settings,
    )
    return edit.with_strength(torch.ones(classes))  # type: ignore[return-value]


def steering(model: DiffusionModel, cfg: DictConfig, *, repeats: int = 5) -> dict[str, dict[str, float]]:
    """Sampling with every image edited as in a study, keeping no place, in all steps or symmetrically, and untouched."""
    ids, window = torch.arange(model.micro_batch), instantiate(cfg.mitigation.window)
    attribute = read_attribute(plain(cfg.attribute))

    def sample(target: int, *, focus: float = cfg.mitigation.focus, **settings: Any) -> Callable[[], object]:
        latents = range(cfg.attribution.top * len(attribute.classes))
        edit = study(model, cfg, attribute, latents, **{"window": window, **settings})
        edit.focus = focus
        plan = GenerationPlan(0, ids, torch.full_like(ids, target))
        return lambda: list(model.sample(plan, method=edit))

    untouched = lambda: list(model.sample(GenerationPlan(0, ids)))  # noqa: E731
    cases = {
        "as configured": sample(0),
        "keeping no place": sample(0, focus=0.0),
        "in every step": sample(0, window=Window()),
        "symmetric": sample(0, focus=0.0, update="symmetric"),
        "untouched": sample(UNTOUCHED),
    }
    return {name: ratio(work, untouched, repeats) for name, work in cases.items()}


def row(name: str, cfg: DictConfig, found: dict[str, dict[str, float]]) -> str:
    """One preset and its ratios as a line."""
    window, ratios = cfg.mitigation.window, ", ".join(f"{case} {each['ratio']:.2f}×" for case, each in found.items())
    return f"{name} ({cfg.data.site.module}, steps {window.start:g} to {window.stop:g}, top {cfg.attribution.top}): {ratios}"


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


SHAPES = ({"channels": 512, "width": 4096, "k": 32}, {"channels": 1280, "width": 10240, "k": 64})
"""Autoencoders of the sizes that are trained on real networks, in `training`."""


def training(channels: int, width: int, k: int, *, batch: int = 2048, repeats: int = 7) -> dict[str, dict[str, float]]:
    """One step of SAE training over the dense product `x @ W_enc` alone, and over a step of `dictionary_learning`.

    The step is that of `difflens.training.sae_module`, optimiser and constraints included. Time is the processor's, of all
    threads. The second ratio is there where `dictionary_learning` (Marks et al.) can be imported.
    """
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(channels, channels, generator=generator) / channels**0.5
    x = torch.randn(batch, channels, generator=generator) @ mixing
    sae = TopKAutoencoder(channels, expansion=width / channels, k=k)
    module = SaeModule(sae, steps=1, tokens=10**9, batch=batch)
    module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    step = torch.zeros(batch, dtype=torch.int64)
    module.calibrate_input(x, step)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-4, fused=True)
    encoder = sae.w_enc.detach().clone()

    def ours() -> None:
        optimizer.zero_grad()
        module.training_step((x, step), 0).backward()
        sae.remove_parallel_gradient()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        sae.normalise_decoder()

    cases: dict[str, Callable[[], object]] = {"x @ W_enc": lambda: torch.nn.functional.linear(x, encoder)}
    with contextlib.suppress(ImportError):
        theirs = importlib.import_module("dictionary_learning.trainers.top_k").TopKTrainer(
            steps=10**6,
            activation_dim=channels,
            dict_size=width,
            k=k,
            layer=0,
            lm_name="none",
            device="cpu",
            warmup_steps=10,
        )
        counted = itertools.count(1)
        cases["dictionary_learning"] = lambda: theirs.update(next(counted), x)
    return {name: ratio(ours, work, repeats, clock=time.process_time) for name, work in cases.items()}


def main() -> None:
    """Run everything, print it, and keep it in `outputs/benchmark.json`."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    model: DiffusionModel = instantiate(settings_of(PRESETS[0]).model)
    bottleneck = model.site_shape(Site())
    steered = {}
    for name in PRESETS:
        cfg = settings_of(name)
        steered[name] = steering(model, cfg)
        print(row(name, cfg, steered[name]), flush=True)
    found = {
        "threads": torch.get_num_threads(),
        "sampling with an edit / plain": steered,
        "official attribution / closed form": attribution(bottleneck),
        "dense decode / sparse": decoding(bottleneck[0]),
        "SAE training step over": {str(shape): training(**shape) for shape in SHAPES},
    }
    path = Path("outputs") / "benchmark.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
