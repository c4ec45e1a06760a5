"""`task=activations`: sample images and store the activations of a site at every step."""

from pathlib import Path

from omegaconf import DictConfig

from difflens.data.activations import ActivationStore, expected_bytes
from difflens.data.sampled import Shards
from difflens.stages.plans import contrast_plan, learning_plan, plan_spec
from difflens.store.artifacts import Artifact
from difflens.store.files import room_for
from difflens.store.run import Run
from difflens.study.workbench import Workbench
from difflens.training.steering_module import sample
from difflens.vocabulary import GenerationPlan


def activations(cfg: DictConfig, run: Run) -> None:
    """Run the stage alone."""
    collect(Workbench(cfg, run))


def collect(bench: Workbench) -> tuple[Artifact, ActivationStore]:
    """The stored activations, images and ids of `data.images` images; goes on where an interrupted run stopped."""
    # Before anything of that size is made: a plan of a billion images alone fills the memory.
    room_for(bench.run.store.root, expected_bytes(bench.model, bench.site, bench.cfg.data.images), there=True)
    artifact = bench.once("activations", lambda: _collect(bench, learning_plan(bench)))
    return artifact, ActivationStore(artifact.folder)


def collect_contrast(bench: Workbench) -> tuple[Artifact, ActivationStore]:
    """Activations of the images that name a class, under prompts that name another one (see `contrast_plan`)."""
    artifact = bench.once("contrast", lambda: _collect(bench, contrast_plan(bench)))
    return artifact, ActivationStore(artifact.folder)


def _collect(bench: Workbench, plan: GenerationPlan) -> Artifact:
    spec = {"model": bench.model.spec(), "site": bench.site_spec, **plan_spec(plan)}

    def make(folder: Path) -> None:
        # Only what has to be made needs free space, and all ranks write to one disk: the first asks for all.
        if not bench.run.rank:
            room_for(folder, expected_bytes(bench.model, bench.site, len(plan.image_ids)))
        sample(bench.trainer("activations"), bench.model, plan, Shards(folder, bench.site), record=bench.site)

    with bench.run.stage("activations"):
        # All ranks sample, each micro-batch goes to a shard at once: a kill costs the one in flight alone.
        return bench.run.artifact("activations", spec, make, resumable=True, together=True)
