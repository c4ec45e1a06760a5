"""`task=steer`: generate evaluation images with and without the mitigation."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from difflens.data.sampled import Shards
from difflens.report import summary_table
from difflens.stages.calibrate import Prepared, aimed, assign, left_alone, prepare
from difflens.stages.measure import check_measures, evaluate
from difflens.stages.plans import evaluation_plan, naming_plan, originals
from difflens.store.artifacts import Artifact
from difflens.store.run import Run
from difflens.study.workbench import Workbench
from difflens.training.steering_module import sample
from difflens.vocabulary import UNTOUCHED, GenerationPlan


@dataclass(frozen=True)
class Steered:
    """Evaluation images before and after: uint8 images [N, 3, H, W], targets [N], and where they are stored.

    `named` has those of prompts that name a class, for which nothing is measured but whether they are obeyed.
    """

    plan: GenerationPlan
    before: Tensor
    after: Tensor
    targets: Tensor
    labels: Tensor
    artifacts: tuple[Artifact, Artifact]
    named: "Steered | None" = None

    @property
    def image_ids(self) -> Tensor:
        """Ids [N] of the images."""
        return self.plan.image_ids

    @property
    def edited(self) -> Tensor:
        """Which images the mitigation acted on."""
        return self.targets != UNTOUCHED


def steer(cfg: DictConfig, run: Run) -> None:
    """Run the stage alone, measure it, and print the summary."""
    bench = Workbench(cfg, run)
    check_measures(bench)
    prepared = prepare(bench)
    metrics = evaluate(bench, generate_pairs(bench, prepared))
    if run.speaks:
        Console().print(summary_table(metrics))


def generate_pairs(bench: Workbench, prepared: Prepared, *, unseen: bool = False) -> Steered:
    """The evaluation images with the mitigation, and those of prompts that name a class, which unseen prompts lack."""
    naming = None if unseen else naming_plan(bench)
    found = _pairs(bench, prepared, evaluation_plan(bench, unseen=unseen))
    return found if naming is None else replace(found, named=_pairs(bench, prepared, naming))


def _pairs(bench: Workbench, prepared: Prepared, plan: GenerationPlan) -> Steered:
    """The plan's images without and with the mitigation; only images whose target asks for it are generated again."""
    source, before = originals(bench, plan)
    # The images' own seed shuffles the quota, so that the originals' fingerprint stands for the shuffle too.
    targets, labels = assign(bench, before, plan, seed=bench.cfg.metric.base_seed)
    spec: dict[str, Any] = {**prepared.spec, "originals": source.fingerprint, **left_alone(bench, plan)}
    # No edit at all, since a neutral strength need not be one: `protocol=official` adds a bias at any strength.
    if not prepared.attached:
        targets, spec["attached"] = torch.full_like(targets, UNTOUCHED), False

    def make(folder: Path) -> None:
        edit = prepared.mitigation
        asked = aimed(bench, edit, plan, before, targets)
        sample(bench.trainer("steer"), bench.model, asked, Shards(folder), edit=edit)
        # No two ranks may write the same file.
        if not bench.run.rank:
            save_file({"targets": targets}, folder / "targets.safetensors")

    with bench.run.stage("steer"):
        artifact = bench.run.artifact("steered", spec, make, resumable=True, together=True)
    # Edited images alone are stored; all others are the originals' own bytes.
    after = Shards(artifact.folder).replaced(before, plan.image_ids)
    # Not `targets`: an artifact that is reused knows the classes that its images were really pushed towards.
    stored = load_file(artifact.folder / "targets.safetensors")["targets"]
    return Steered(plan, before, after, stored, labels, (source, artifact))
