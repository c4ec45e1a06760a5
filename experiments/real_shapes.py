"""Steering at the real shapes without any weights: `uv run python experiments/real_shapes.py sd15`.

Builds a published architecture with random weights, makes one image plain and steered at its bottleneck, and prints as JSON
what that took. Exits with 1 if U-Net or site do not run once per step, if an empty edit changes a bit or a real one changes
nothing, or if the bottleneck's shape is not the published one. `--divide-widths 8 --size 64` is a try-out in seconds; the
full size wants minutes on a CPU. On a GPU: `--device cuda --precision fp16 --steps 50 --repeats 3`, whose ratios are the
overhead of steering.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from difflens.attribution.statistics import CodeStatistics
from difflens.methods.difflens import FeatureEdit
from difflens.models.load import load_text_to_image
from difflens.models.model import DiffusionModel
from difflens.sae.topk import TopKAutoencoder
from difflens.vocabulary import Attribute, FeatureSet, GenerationPlan, Site

SITE = Site("mid_block", branch="cond")
GENDER = Attribute("gender", ("female", "male"))
UPDATES = ("symmetric", "asymmetric")
GUIDANCE = {"sd15": 7.5, "sd21": 7.5, "sdxl": 5.0}
BOTTLENECK = {"sd15": (1280, 8, 8), "sd21": (1280, 12, 12), "sdxl": (1280, 32, 32)}


def settings() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architecture", choices=GUIDANCE)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--images", type=int, default=1, help="images of the one micro-batch")
    parser.add_argument("--size", type=int, help="pixels; the architecture's own if not given")
    parser.add_argument("--divide-widths", type=int, default=1, choices=(1, 2, 4, 8))
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "fp16", "bf16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--updates", nargs="+", default=UPDATES, choices=UPDATES)
    parser.add_argument(
        "--repeats", type=int, default=1, help="timed runs of each kind, in turn; 0: only the first are timed"
    )
    return parser.parse_args()


def steering(model: DiffusionModel, strength: float, update: str) -> FeatureEdit:
    """Adds to 40 latents of an SAE as wide as the paper's for Stable Diffusion; strength 0 changes nothing."""
    channels, height, width = model.site_shape(SITE)
    torch.manual_seed(0)
    sae = TopKAutoencoder(channels, expansion=4, k=32).requires_grad_(False).eval().to(model.device)
    latents = tuple(range(80))
    usual = CodeStatistics(
        torch.tensor(latents), torch.zeros(2, model.steps, 80, height, width), torch.ones(model.steps, 80)
    )
    features = FeatureSet(GENDER, {"female": latents[:40], "male": latents[40:]})
    edit = FeatureEdit(sae, features, usual, site=SITE, mode="add", update=update)
    return edit.with_strength(torch.full((2,), strength))  # type: ignore[return-value]


def sampler(model: DiffusionModel, edit: FeatureEdit | None) -> Callable[[], Tensor]:
    ids = torch.arange(model.micro_batch)
    plan = GenerationPlan(0, ids, torch.zeros_like(ids), ("A face of a firefighter",) * len(ids))
    return lambda: next(model.sample(plan, method=edit)).images


def counted(model: DiffusionModel, work: Callable[[], Tensor]) -> tuple[Tensor, dict[str, list[int]], float]:
    """What the work gives, the rows of the batch at each call of U-Net, site and last layer, and seconds."""
    unet = model.unet
    rows: dict[str, list[int]] = {"unet": [], SITE.module: [], "conv_out": []}
    note: Callable[[str], Any] = lambda name: lambda _, args: rows[name].append(len(args[0]))  # noqa: E731
    modules = {"unet": unet, SITE.module: unet.get_submodule(SITE.module), "conv_out": unet.conv_out}
    handles = [module.register_forward_pre_hook(note(name)) for name, module in modules.items()]
    start = time.perf_counter()
    try:
        return work(), rows, time.perf_counter() - start
    finally:
        for handle in handles:
            handle.remove()


def timed(work: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_gigabytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def faults(found: dict[str, Any]) -> list[str]:
    """What did not hold of what `main` found."""
    wrong = []
    published = found["divide_widths"] == 1 and found["size"] is None
    if published and tuple(found["bottleneck"]) != BOTTLENECK[found["architecture"]]:
        wrong.append(f"the bottleneck is {found['bottleneck']}, published {BOTTLENECK[found['architecture']]}")
    for kind in ("plain", *found["updates"]):
        calls = {name: len(rows) for name, rows in found[f"rows_{kind}"].items()}
        if set(calls.values()) != {found["steps"]}:
            wrong.append(f"{kind}: {calls} calls in {found['steps']} steps")
    for update in found["updates"]:
        if not found[f"{update}_neutral_is_bit_equal"]:
            wrong.append(f"{update}: an empty edit changed the image")
        if not found[f"{update}_moved"]:
            wrong.append(f"{update}: the edit changed nothing")
    return wrong


def main() -> None:
    asked = settings()
    start = time.perf_counter()
    model = load_text_to_image(
        "",
        weights="random",
        architecture=asked.architecture,
        divide_widths=asked.divide_widths,
        name=asked.architecture,
        steps=asked.steps,
        micro_batch=asked.images,
        guidance=GUIDANCE[asked.architecture],
        height=asked.size,
        width=asked.size,
        precision=asked.precision,
        device=asked.device,
    )
    found: dict[str, Any] = {**vars(asked), "build_seconds": time.perf_counter() - start}
    found["bottleneck"] = model.site_shape(SITE)
    plain, found["rows_plain"], found["first_seconds_plain"] = counted(model, sampler(model, None))
    for update in asked.updates:
        neutral, _, _ = counted(model, sampler(model, steering(model, 0.0, update)))
        edited = counted(model, sampler(model, steering(model, 20.0, update)))
        steered, found[f"rows_{update}"], found[f"first_seconds_{update}"] = edited
        found[f"{update}_neutral_is_bit_equal"] = torch.equal(neutral, plain)
        found[f"{update}_moved"] = float((steered - plain).abs().max())
    kinds = {"plain": sampler(model, None)}
    kinds |= {update: sampler(model, steering(model, 20.0, update)) for update in asked.updates}
    rounds = [{name: timed(work) for name, work in kinds.items()} for _ in range(asked.repeats)]
    for name in kinds if rounds else ():
        found[f"seconds_{name}"] = statistics.median(each[name] for each in rounds)
        found[f"ratio_{name}"] = statistics.median(each[name] / each["plain"] for each in rounds)
    found["peak_gigabytes"] = peak_gigabytes(model.device)
    print("{\n" + ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in found.items()) + "\n}")
    if wrong := faults(found):
        sys.exit("; ".join(wrong))


if __name__ == "__main__":
    main()
