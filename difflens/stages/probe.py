"""`task=probe`: fit one classifier per denoising step on the stored activations, labelled by the judge."""

from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor

from difflens.probes.base import Probe, load_probe, save_probe
from difflens.stages.activations import collect
from difflens.stages.plans import learning_labels
from difflens.store.artifacts import Artifact
from difflens.store.progress import Progressing
from difflens.store.run import Run
from difflens.study.values import built, plain
from difflens.study.workbench import Workbench
from difflens.vocabulary import Attribute


def probe(cfg: DictConfig, run: Run) -> None:
    """Run the stage alone."""
    artifact, _, accuracy = fit(Workbench(cfg, run))
    run.say(
        f"probe {artifact.fingerprint}: held-out accuracy {accuracy[0]:.3f} at step 0, {accuracy.max():.3f} at best"
    )


def fit(bench: Workbench, attribute: Attribute | None = None) -> tuple[Artifact, Probe, Tensor]:
    """The probe of an attribute (the one under study if None) and its held-out accuracy per step."""
    studied = attribute or bench.attribute
    return bench.once(f"probe {studied.name}", lambda: _fit(bench, studied))


def _fit(bench: Workbench, attribute: Attribute) -> tuple[Artifact, Probe, Tensor]:
    activations, store = collect(bench)
    spec = {
        "activations": activations.fingerprint,
        **bench.attribute_spec(attribute),
        **bench.label_spec(),
        "probe": plain(bench.cfg.probe),
        "seed": bench.cfg.seed,
    }

    def make(folder: Path) -> None:
        labels = learning_labels(bench, store, attribute)
        with Progressing(f"probe of {attribute.name}", store.steps) as display:
            fitted = built(bench.cfg, "probe")(
                store.at_step,
                labels,
                attribute,
                steps=store.steps,
                seed=bench.cfg.seed,
                progress=lambda _: display.advance(),
            )
        # Refused before it is stored: gates and attribution would take NaN for a reading.
        if not all(learnt.isfinite().all() for learnt in fitted.probe.buffers()):
            raise ValueError(f"the probe of {attribute.name} did not converge; raise probe.l2 or data.images.")
        save_probe(fitted, folder)

    with bench.run.stage("probe"):
        artifact = bench.run.artifact("probe", spec, make)
    fitted, accuracy = load_probe(artifact.folder)
    if attribute == bench.attribute:
        bench.tracker.curve("probe/accuracy", accuracy.tolist())
    return artifact, fitted, accuracy
