"""What probes read off the model's own states at a step of unedited trajectories: all that a deployed edit can know."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from difflens.models.devices import placed
from difflens.stages import probe as probe_stage
from difflens.stages.plans import plan_spec
from difflens.store.progress import Progressing
from difflens.study.workbench import Workbench
from difflens.vocabulary import Attribute, GenerationPlan


def read_step(bench: Workbench) -> int:
    """The step at which classes are read: `mitigation.read` under `early`, else the last of an unedited one beside it."""
    share = bench.cfg.mitigation.read if bench.cfg.mitigation.assignment == "early" else 1.0
    # A share of 1 would be the step after the last.
    wanted = min(int(share * bench.model.steps), bench.model.steps - 1)
    # A sampler with fewer steps than were studied does not come by all of them.
    return min(bench.model.step_of.values(), key=lambda step: abs(step - wanted))


def read_states(bench: Workbench, plan: GenerationPlan, attributes: list[Attribute]) -> dict[str, Tensor]:
    """The probes' logits [N, C] of these attributes, by name, on the plan's images at the step of `read_step`."""
    step = read_step(bench)
    fitted = {attribute.name: probe_stage.fit(bench, attribute)[:2] for attribute in attributes}
    spec = {
        "model": bench.model.spec(),
        "site": bench.site_spec,
        "base_seed": plan.base_seed,
        "images": len(plan.image_ids),
        **plan_spec(plan),
        "step": step,
        "probes": {name: artifact.fingerprint for name, (artifact, _) in fitted.items()},
    }

    def make(folder: Path) -> None:
        found: dict[str, list[Tensor]] = {name: [] for name in fitted}
        with Progressing("states", len(plan.image_ids)) as display:
            for maps in bench.model.states(plan, bench.site, step):
                for name, (_, probe) in fitted.items():
                    # The logits alone are stored, less than a thousandth of the maps that they are read from.
                    found[name].append(placed(probe, maps.device)(maps.float(), step).cpu())
                display.advance(len(maps))
        save_file({name: torch.cat(parts) for name, parts in found.items()}, folder / "states.safetensors")

    with bench.run.stage("states"):
        artifact = bench.run.artifact("states", spec, make)
    return load_file(artifact.folder / "states.safetensors")
