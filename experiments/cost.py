"""How time and memory of every stage grow: `uv run python experiments/cost.py`.

Runs the computation of each stage on a small U-Net and an SAE with random weights, varies one of images, steps, channels,
width of the SAE and image size at a time, and fits powers: time ∝ images^a and so on, with R². Writes `outputs/cost.json` and
`outputs/cost.svg`. `difflens task=doctor` foretells a study from measured floors instead; these exponents say how far its
proportionality holds. Peaks of memory are those above what the process held before, on a GPU those of its allocator.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from difflens.attribution.scorers import IntegratedGradients
from difflens.attribution.statistics import CodeStatistics
from difflens.methods.difflens import FeatureEdit
from difflens.models.devices import return_memory_at_once
from difflens.models.model import DiffusionModel, UnconditionalPipeline
from difflens.probes.linear import LinearProbe, fit_linear_probe
from difflens.report.figures import save_plot
from difflens.sae.losses import Objective
from difflens.sae.topk import TopKAutoencoder
from difflens.training.attribution_module import AttributionModule, LabelledMaps
from difflens.vocabulary import Attribute, FeatureSet, GenerationPlan, Site

ATTRIBUTE, SITE, UPDATES = Attribute("gender", ("female", "male")), Site(), 8
LEVELS = 3
"""Of the U-Net: the bottleneck has four times the channels and a quarter of the side."""


@dataclass(frozen=True)
class Case:
    """A study's size: `channels` are those at full resolution, `width` latents per channel, `size` pixels of a side."""

    images: int = 32
    steps: int = 4
    channels: int = 32
    width: int = 8
    size: int = 32


AXES: Mapping[str, tuple[int, ...]] = {
    "images": (16, 32, 64, 128),
    "steps": (2, 4, 8, 16),
    "channels": (16, 32, 64, 128),
    "width": (4, 8, 16, 32),
    "size": (16, 32, 64, 128),
}


class Cost(NamedTuple):
    """Seconds, and bytes above what was held before."""

    seconds: float
    memory: float


class Fit(NamedTuple):
    """cost ∝ size^exponent, and the share of the logarithm's variance that this explains."""

    exponent: float
    r2: float


def fit(sizes: tuple[int, ...], costs: list[float]) -> Fit:
    """The straight line through logarithms."""
    x, y = np.log(sizes), np.log(np.maximum(costs, 1e-9))
    slope, start = np.polyfit(x, y, 1)
    rest, whole = ((y - slope * x - start) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    return Fit(float(slope), 1 - float(rest / whole) if whole > 0 else 1.0)


def random_model(case: Case, device: str) -> DiffusionModel:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=case.size,
        block_out_channels=[case.channels * 2**level for level in range(LEVELS)],
        layers_per_block=1,
        down_block_types=["DownBlock2D"] * LEVELS,
        up_block_types=["UpBlock2D"] * LEVELS,
        norm_num_groups=8,
        attention_head_dim=16,
    )
    pipeline = UnconditionalPipeline(unet.eval().requires_grad_(False).to(device), DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return DiffusionModel(pipeline, name="random", steps=case.steps, micro_batch=16)


def stages(case: Case, device: str) -> dict[str, Callable[[], object]]:
    """The computation of each stage of a study of this size, on inputs that are at hand."""
    model = random_model(case, device)
    channels, height, width = model.site_shape(SITE)
    sae = TopKAutoencoder(channels, expansion=case.width, k=min(32, channels)).to(device)
    ids = torch.arange(case.images)
    labels = ids % 2
    maps = torch.randn(case.steps, case.images, channels, height, width)
    probe = LinearProbe(case.steps, 2, channels * height * width).to(device)
    latents = tuple(range(24))
    usual = CodeStatistics(
        torch.tensor(latents), torch.rand(2, case.steps, 24, height, width), torch.ones(case.steps, 24)
    )
    features = FeatureSet(ATTRIBUTE, {"female": latents[:12], "male": latents[12:]})
    edit = FeatureEdit(sae, features, usual, site=SITE, mode="contrast").with_strength(torch.ones(2))
    plan = GenerationPlan(0, ids)

    def train() -> None:
        optimizer = torch.optim.Adam(sae.parameters(), fused=True)
        dead = torch.zeros(sae.width, dtype=torch.bool, device=device)
        objective = Objective(torch.tensor(1.0, device=device), lambda _: dead, aux_coefficient=0.0)
        tokens = maps.movedim(2, -1).flatten(0, -2).to(device)
        for batch in tokens.split(math.ceil(len(tokens) / UPDATES)):
            sae.loss(batch, objective).total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()

    def attribute() -> None:
        module = AttributionModule(sae, probe, ATTRIBUTE, IntegratedGradients()).to(device)
        for step in range(case.steps):
            parts = zip(maps[step].split(64), labels.split(64), strict=True)
            module.predict_step([LabelledMaps(h.to(device), own.to(device), step) for h, own in parts], step)

    def sampled(**settings: Any) -> list[Tensor]:
        with torch.inference_mode():
            return [batch.images for batch in model.sample(**settings)]

    return {
        "sampling": lambda: sampled(plan=plan),
        "recording": lambda: sampled(plan=plan, record=SITE),
        "steering": lambda: sampled(plan=plan.towards(labels), method=edit),
        "SAE's training": train,
        "probe": lambda: fit_linear_probe(lambda step: maps[step], labels, ATTRIBUTE, steps=case.steps),
        "attribution": attribute,
    }


def held(device: str, *, peak: bool) -> float:
    """Bytes that are held now, or were since the last call without `peak`."""
    if torch.device(device).type == "cuda":
        if not peak:
            torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated())
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return 1024 * float(lines["VmHWM" if peak else "VmRSS"].split()[0])


def measure(work: Callable[[], object], device: str, repeats: int) -> Cost:
    """The shortest of some runs after one that warms up; the peak is that of the first of them."""
    work()
    found = []
    for _ in range(repeats):
        before, start = held(device, peak=False), time.perf_counter()
        work()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        found.append(Cost(time.perf_counter() - start, held(device, peak=True) - before))
    return Cost(min(cost.seconds for cost in found), found[0].memory)


def along(
    axis: str, sizes: tuple[int, ...], base: Case, device: str, repeats: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds and bytes of every stage at each size of one axis."""
    found: dict[str, dict[str, list[float]]] = {}
    for size in sizes:
        for name, work in stages(replace(base, **{axis: size}), device).items():
            cost = measure(work, device, repeats)
            for key, value in cost._asdict().items():
                found.setdefault(name, {"seconds": [], "memory": []})[key].append(value)
        print(f"{axis} {size}: " + ", ".join(f"{name} {costs['seconds'][-1]:.3g} s" for name, costs in found.items()))
    return found


def exponents(sizes: tuple[int, ...], costs: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    return {key: fit(sizes, values)._asdict() for key, values in costs.items()}


def table(fits: Mapping[str, Any]) -> Table:
    shown = Table("stage", *fits, title="exponent of time and its R²; of memory", title_justify="left")
    for name in next(iter(fits.values())):
        cells = (fits[axis][name] for axis in fits)
        shown.add_row(
            name,
            *(
                f"{c['seconds']['exponent']:.2f} ({c['seconds']['r2']:.2f}); {c['memory']['exponent']:.2f}"
                for c in cells
            ),
        )
    return shown


def draw(figure: Figure, data: Mapping[str, Any]) -> None:
    """Seconds over each axis, both logarithmic, a line per stage."""
    panels = figure.subplots(1, len(data["measured"]), sharey=True, squeeze=False)[0]
    for axes, (axis, found) in zip(panels, data["measured"].items(), strict=True):
        for name, costs in found.items():
            axes.loglog(data["sizes"][axis], costs["seconds"], marker="o", markersize=3, label=name)
        axes.set_xlabel(axis)
        axes.set_xticks(data["sizes"][axis], [str(size) for size in data["sizes"][axis]])
        axes.minorticks_off()
    panels[0].set_ylabel("seconds")
    panels[-1].legend(fontsize="small")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--axes", nargs="+", default=[*AXES], choices=AXES)
    parser.add_argument("--points", type=int, default=4, choices=(2, 3, 4), help="sizes tried of each axis")
    parser.add_argument("--repeats", type=int, default=2)
    asked = parser.parse_args()
    return_memory_at_once()
    base, sizes = Case(), {axis: AXES[axis][: asked.points] for axis in asked.axes}
    measured = {axis: along(axis, sizes[axis], base, asked.device, asked.repeats) for axis in asked.axes}
    fits = {
        axis: {name: exponents(sizes[axis], costs) for name, costs in found.items()} for axis, found in measured.items()
    }
    data = {"device": asked.device, "threads": torch.get_num_threads(), "base": asdict(base), "sizes": sizes}
    data |= {"measured": measured, "exponents": fits}
    outputs = Path("outputs")
    outputs.mkdir(exist_ok=True)
    (outputs / "cost.json").write_text(json.dumps(data, indent=2) + "\n")
    save_plot(outputs, "cost", draw, data, (12.0, 3.4))
    Console().print(table(fits))


if __name__ == "__main__":
    main()
