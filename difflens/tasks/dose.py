"""`task=dose`: shares, FD, CLIP-I and leakage from no edit to twice the calibrated strength (METHOD 10.3)."""

from dataclasses import replace

from omegaconf import DictConfig

from difflens.report.figures import doses_size, draw_doses
from difflens.report.measures import fairness
from difflens.stages.calibrate import prepare
from difflens.stages.generate import generate_pairs
from difflens.stages.measure import check_measures, evaluate
from difflens.store.run import Run
from difflens.study.workbench import Workbench
from difflens.tasks.experiment_files import keep


def dose(cfg: DictConfig, run: Run) -> None:
    """Steer and measure the evaluation images at every multiple of `task.doses`; write `dose.json` and `dose.svg`."""
    bench = Workbench(cfg, run)
    check_measures(bench)
    prepared = prepare(bench)
    neutral = prepared.mitigation.neutral
    rows, metrics = [], {}
    for multiple in cfg.task.doses:
        strength = neutral + multiple * (prepared.strength - neutral)
        # The strength decides the images, not how it was found: equal doses are made once.
        spec = {key: value for key, value in prepared.spec.items() if key != "calibration"}
        edit = replace(
            prepared,
            mitigation=prepared.mitigation.with_strength(strength),
            strength=strength,
            spec={**spec, "strength": strength.tolist()},
            # No edit at all: under `protocol=official` a neutral one still adds a bias.
            attached=multiple != 0,
        )
        metrics = evaluate(bench, generate_pairs(bench, edit))
        rows.append({"dose": multiple, "strength": strength.tolist(), **metrics["rows"][1]})
        run.say(f"{multiple:g} × the calibrated strength: FD hard {fairness(rows[-1], 'fd_hard'):.3f}")
    data = {"attribute": bench.attribute.name, "classes": list(bench.attribute.classes), "rows": rows}
    data["measures"] = metrics["measures"]
    keep(run, "dose", data, draw_doses, doses_size(data))
