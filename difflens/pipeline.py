"""`task=pipeline`, the default: every stage from activations to the report."""

from omegaconf import DictConfig

from difflens.stages.calibrate import prepare
from difflens.stages.generate import generate_pairs
from difflens.stages.measure import check_measures, evaluate
from difflens.stages.present import present
from difflens.store.run import Run
from difflens.study.workbench import Workbench


def pipeline(cfg: DictConfig, run: Run) -> None:
    """Dissect, locate, control, measure, and show it; each stage reuses what an earlier run made."""
    bench = Workbench(cfg, run)
    check_measures(bench)
    prepared = prepare(bench)
    steered = generate_pairs(bench, prepared)
    measured = {"": evaluate(bench, steered)}
    if bench.prompts is not None and bench.prompts.unseen:
        others = generate_pairs(bench, prepared, unseen=True)
        measured["unseen prompts"] = evaluate(bench, others, unseen=True)
    present(bench, prepared, steered, measured)
