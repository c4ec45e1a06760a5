"""`task=activations`: sample images and store the activations of a site at every step."""

from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.progress import track

from difflens.artifacts import Artifact, check_space
from difflens.data.activations import ActivationStore, collect_activations, expected_bytes
from difflens.run import Run
from difflens.tasks.workbench import Workbench, plain
from difflens.types import GenerationPlan


def activations(cfg: DictConfig, run: Run) -> None:
    """Run the stage alone."""
    collect(Workbench(cfg, run))


def collect(bench: Workbench) -> Artifact:
    """The stored activations, images and ids of `data.images` images; goes on where an interrupted run stopped."""
    return bench.once("activations", lambda: _collect(bench))


def _collect(bench: Workbench) -> Artifact:
    data = bench.cfg.data
    spec = {"model": bench.model.spec(), "site": plain(data.site), "images": data.images, "base_seed": data.base_seed}

    def make(folder: Path) -> None:
        check_space(folder, expected_bytes(bench.model, bench.site, data.images))
        plan = GenerationPlan(data.base_seed, torch.arange(data.images))
        batches = -(-data.images // bench.model.micro_batch)
        progress = collect_activations(bench.model, plan, site=bench.site, folder=folder)
        for _ in track(progress, description="activations", total=batches):
            pass

    with bench.run.stage("activations"):
        return bench.run.artifact("activations", spec, make, resumable=True)


def open_store(bench: Workbench) -> tuple[Artifact, ActivationStore]:
    """The activations stage's result, made if need be."""
    artifact = collect(bench)
    return artifact, ActivationStore(artifact.folder)
