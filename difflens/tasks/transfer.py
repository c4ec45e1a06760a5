"""`task=transfer`: one calibration at other samplers and on unseen prompts, and what calibrating there would have given."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from omegaconf import DictConfig

from difflens.methods.base import Window
from difflens.models.load import choose_scheduler
from difflens.models.model import DiffusionModel
from difflens.report.sweep import as_csv
from difflens.report.transfer import PROMPTS, draw_transfer, sentence, tidy_settings, transfer_size
from difflens.stages.calibrate import Prepared, prepare, slot_names
from difflens.stages.examine import examine
from difflens.stages.generate import generate_pairs
from difflens.stages.measure import check_measures, evaluate, measured
from difflens.stages.present import present
from difflens.store.files import write_text
from difflens.store.run import Run
from difflens.study.values import blaming, plain
from difflens.study.workbench import Workbench
from difflens.tasks.experiment_files import keep


class Setting(NamedTuple):
    """A setting of the sampler, or the prompts that nothing was learnt on."""

    axis: str  # what differs from the study
    value: Any  # how
    bench: Workbench  # the study with that sampler; what was fitted is the study's own
    calibrating: Workbench  # the same, with the prompts that a calibration there would be made on


def transfer(cfg: DictConfig, run: Run) -> None:
    """Measure the study's edit at every setting; write `transfer.json`, `transfer.csv`, `transfer.svg` and the report.

    Autoencoder, probe, attribution and fit stay those of the studied sampler. At another one each step meets what was fitted
    at the studied step of the nearest noise, and is edited if that one was.

    Raises:
        ValueError: a setting is none of the model's, nothing fits it, or none differs from the study's own.
    """
    bench = Workbench(cfg, run)
    check_measures(bench)
    # All of them before anything is computed: one that cannot be made should not be found after hours.
    settings = [*varied(bench)]
    if not settings:
        raise ValueError("task.vary names no setting that this model has and the study does not have itself; name one.")
    # The study first, since what a stage has not made by then would be made of another sampler's images.
    prepared = prepare(bench)
    pairs = generate_pairs(bench, prepared)
    metrics = evaluate(bench, pairs)
    data = {
        "attribute": bench.attribute.name,
        "method": cfg.mitigation.name,
        "images": len(pairs.image_ids),
        "strength": strengths(bench, prepared),
        "rows": dict(zip(("original", "transferred"), metrics["rows"], strict=True)),
        "settings": [],
    }
    for setting in settings:
        data["settings"].append(measure_at(setting, prepared))
        run.say(sentence(data["settings"][-1]))
    if not run.rank:
        write_text(run.folder / "transfer.csv", as_csv(tidy_settings(data)))
    keep(run, "transfer", data, draw_transfer, transfer_size(data))
    present(bench, prepared, pairs, {"": metrics}, examine(bench, prepared, pairs))


def varied(bench: Workbench) -> Iterator[Setting]:
    """Every setting that `task.vary` names and the study does not have itself, and the unseen prompts.

    What a model's configuration does not have, such as the guidance of one without prompts, is left out and told.

    Raises:
        ValueError: the model cannot be sampled so, or the edit cannot be made there.
    """
    for axis, values in plain(bench.cfg.task.vary).items():
        if axis not in bench.cfg.model:
            if values:
                bench.run.say(f"{axis}: {bench.model.name} has no such setting; left out")
            continue
        for value in values:
            if value != bench.cfg.model[axis]:
                with blaming(f"task.vary.{axis}={value}"):
                    other = bench.sampled(model=resampled(bench, axis, value))
                yield Setting(axis, value, other, other)
    if bench.prompts is not None and bench.prompts.unseen:
        kept_apart = replace(bench.prompts, studied=bench.prompts.unseen, unseen=())
        yield Setting(PROMPTS, "unseen", bench, bench.sampled(prompts=kept_apart))


def resampled(bench: Workbench, axis: str, value: Any) -> DiffusionModel:
    """The study's model with one setting of its sampler changed (ValueError: it has none such, or the edit has no place)."""
    changes = {axis: value}
    if axis == "scheduler":
        changes = {axis: choose_scheduler(bench.model.pipeline.scheduler, value)}
    model = bench.model.resampled(**changes)
    model.check_update(bench.method.update)
    # For its refusal of a branch that is not computed without guidance.
    model.site_shape(bench.site)
    window = getattr(bench.method, "window", None)
    if isinstance(window, Window) and not any(window.holds(step, model.steps) for step in model.step_of.values()):
        raise ValueError(f"none of the {len(model.timesteps)} steps lies in mitigation.window.")
    return model


def measure_at(setting: Setting, prepared: Prepared) -> dict[str, Any]:
    """What the study's own strength does at a setting, and what one calibrated there does; None without a calibration."""
    bench, unseen = setting.bench, setting.axis == PROMPTS
    _, moved = measured(bench, generate_pairs(bench, prepared, unseen=unseen), unseen=unseen)
    found = {
        "axis": setting.axis,
        "value": setting.value,
        # What the study itself has there, so that a plot can set it beside.
        "studied": "studied" if unseen else bench.cfg.model[setting.axis],
        "rows": {"original": moved["rows"][0], "transferred": moved["rows"][1], "recalibrated": None},
        "strength": None,
    }
    # A strength that was given, or a method without a dial, is what it is everywhere.
    if prepared.calibration is None:
        return found
    anew = prepare(setting.calibrating)
    again = moved
    # Equal strengths make equal images.
    if anew.strength.tolist() != prepared.strength.tolist():
        _, again = measured(bench, generate_pairs(bench, anew, unseen=unseen), unseen=unseen)
    found["rows"]["recalibrated"] = again["rows"][1]
    return {**found, "strength": strengths(setting.calibrating, anew)}


def strengths(bench: Workbench, prepared: Prepared) -> dict[str, float]:
    """The strength of each class, or of each class of each prompt."""
    return dict(zip(slot_names(bench), prepared.strength.tolist(), strict=True))
