"""The study, read from top to bottom: dissect, locate, control, measure, show. `task=pipeline`, the default."""

from omegaconf import DictConfig

from difflens.stages.activations import collect
from difflens.stages.attribution import locate_features
from difflens.stages.calibrate import prepare
from difflens.stages.examine import examine
from difflens.stages.fit import fit
from difflens.stages.generate import generate_pairs
from difflens.stages.measure import check_measures, evaluate
from difflens.stages.present import present
from difflens.stages.probe import fit as fit_probe
from difflens.stages.sae import train
from difflens.store.run import Run
from difflens.study.workbench import Workbench


def pipeline(cfg: DictConfig, run: Run) -> None:
    """Every stage in its order; each reuses what an earlier run made, and a method gets only what it asks for."""
    study = Workbench(cfg, run)  # model, attribute, prompts, judges, method: checked before anything is computed
    # What only the last stages need is looked for before the first one: a missing file should not be found after hours.
    check_measures(study)

    if study.method.needs:
        collect(study)  # images of the model itself, and the site's activations at every denoising step
    if "attribution" in study.method.needs:
        train(study)  # dissect: a sparse autoencoder on those activations
    if study.method.needs & {"probe", "attribution"}:
        fit_probe(study)  # one classifier per step, on labels of the first judge
    if "attribution" in study.method.needs:
        locate_features(study)  # locate: the latents that drive the probe
    fit(study)  # what the method under test learns, of the attribute and of those it holds
    prepared = prepare(study)  # control: the smallest sufficient strength per class, on images of their own
    pairs = generate_pairs(study, prepared)  # images never used before, without and with the edit
    measured = {"": evaluate(study, pairs)}  # by the second judge
    # Nothing was learnt or chosen on these prompts: they show whether the edit goes beyond the studied ones.
    if study.prompts is not None and study.prompts.unseen:
        others = generate_pairs(study, prepared, unseen=True)
        measured["unseen prompts"] = evaluate(study, others, unseen=True)
    examined = examine(study, prepared, pairs)  # what may be wrong: do latents tell the attribute, and do they cause it
    present(study, prepared, pairs, measured, examined)  # pictures, report.html with its diagnosis, the table
