"""`task=dashboard`: a ready Weights & Biases workspace for a sweep, written to its folder and, with a key, created."""

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from difflens.report.measures import WORST_LEAKAGE, fairest, measures_of, prices
from difflens.report.run_folder import Json, rows_of
from difflens.report.sweep import read_jobs
from difflens.report.tables import names_in
from difflens.store.files import write_text
from difflens.store.past_run import newest_having
from difflens.store.run import Run
from difflens.tasks.aggregate import asked_overrides
from difflens.training.loggers import STEP

TABLES = ("dose_response", "images", "features")
"""Names of the tables that a run logs."""


def dashboard(cfg: DictConfig, run: Run) -> None:
    """Write `dashboard.json` into the folder of the sweep in `sweep`; create the workspace if WANDB_API_KEY is set.

    Raises:
        ValueError: there is no sweep, the extra is not installed, or a key is set but no entity.
    """
    sweep = newest_having(Path(cfg.sweep), "*/metrics.json")
    jobs = read_jobs(sweep, asked_overrides(sweep))
    online = bool(os.environ.get("WANDB_API_KEY")) and cfg.task.online
    if online and not cfg.task.entity:
        raise ValueError("task.entity must name the user or team of Weights & Biases that the workspace is made for.")
    with run.stage("dashboard"):
        workspace = describe_workspace(
            sweep.resolve().name,
            [job.metrics for job in jobs],
            entity=cfg.task.entity or "entity",
            project=cfg.task.project,
        )
        path = write_text(sweep / "dashboard.json", workspace._to_model().model_dump_json(by_alias=True, indent=2))
        run.say(f"dashboard: {path}")
        if online:
            run.say(f"created {workspace.save().url}")
        else:
            run.say("not created: that needs WANDB_API_KEY, task.entity and task.online=true")


def describe_workspace(sweep: str, found: Sequence[Json], *, entity: str, project: str) -> Any:
    """A workspace over the runs of one sweep: every measure by method, what fairness costs, shares, the inside, and tables.

    Args:
        sweep: the runs' group.
        found: metrics.json of every run.
        entity: user or team.
        project: of the runs.

    Raises:
        ValueError: wandb-workspaces is not installed.
    """
    # An extra: most installations lack it, and no other task needs it.
    try:
        reports: Any = import_module("wandb_workspaces.reports.v2")
        workspaces: Any = import_module("wandb_workspaces.workspaces")
    except ModuleNotFoundError as error:
        raise ValueError("task=dashboard needs `pip install 'difflens[dashboard]'`.") from error
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"difflens: {sweep}",
        sections=[
            workspaces.Section(name=name, panels=panels, is_open=True)
            for name, panels in _panels(reports, found).items()
        ],
        runset_settings=workspaces.RunsetSettings(filters=f"Metric('group') == '{sweep}'"),
    )


def _panels(reports: Any, found: Sequence[Json]) -> dict[str, list[Any]]:
    """The panels of each section by its title."""
    rows = [row for metrics in found for row in rows_of(metrics)]
    methods = list(dict.fromkeys(str(row.get("method")) for row in rows))
    # Trackers are told what rows hold, not what is read off them.
    measures = [measure for measure in measures_of(*found) if measure != WORST_LEAKAGE]
    labels = {measure.column: measure.label for measure in measures}
    costs = {measure.column: measure.label for measure in prices(measures)}
    flips = {f"leakage.{name}.flip_rate": f"leakage of {name}" for name in names_in(rows, "leakage")}
    classes = dict.fromkeys(name for metrics in found for name in metrics.get("classes") or [])
    fair = fairest(measures)

    def bars(title: str, key: str) -> Any:
        return reports.BarPlot(title=title, metrics=[f"{method}/{key}" for method in methods])

    def curves(title: str, names: Sequence[str], x: str) -> Any:
        return reports.LinePlot(title=title, x=x, y=list(names))

    return {
        "Fairness": [bars(f"{label} by method", key) for key, label in (labels | flips).items()],
        "Fairness and its price": [
            reports.ScatterPlot(title=f"FD and {label}: {method}", x=f"{method}/{fair.column}", y=f"{method}/{key}")
            for method in methods
            for key, label in (costs | flips).items()
            if fair and method != "original"
        ],
        "Shares": [bars(f"share of {name}", f"shares.{name}.share") for name in classes],
        "Inside the model": [
            curves("SAE: FVU while training", ["sae/fvu"], "sae/update"),
            curves("SAE: L0 and dead share while training", ["sae/l0", "sae/dead_share"], "sae/update"),
            curves("SAE: FVU at every denoising step", ["sae/held_out/fvu_per_step"], STEP),
            curves("probe: accuracy at every denoising step", ["probe/accuracy"], STEP),
        ],
        "Dose and response, pairs of images, feature cards": [
            reports.WeavePanelSummaryTable(table_name=name) for name in TABLES
        ],
    }
