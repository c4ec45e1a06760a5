"""The panels of a Weights & Biases workspace over what `WandbTracker` logs."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from difflens.training.wandb_tracker import STEP

TABLES = ("dose_response", "images", "features")
"""Names of the tables that a run logs."""


def describe_workspace(
    sweep: str,
    *,
    entity: str,
    project: str,
    methods: Sequence[str],
    classes: Sequence[str],
    others: Sequence[str],
    prompts: bool = False,
) -> Any:
    """A workspace over the runs of one sweep: fairness and its price, shares, what was found inside the model, and tables.

    Args:
        sweep: the runs' group.
        entity: user or team.
        project: of the runs.
        methods: names of the rows of metrics.json.
        classes: of all attributes studied.
        others: attributes on which leakage was measured.
        prompts: whether there are prompts, each with an FD of its own, whose mean then stands for fairness.

    Raises:
        ValueError: wandb-workspaces is not installed.
    """
    try:
        reports: Any = import_module("wandb_workspaces.reports.v2")
        workspaces: Any = import_module("wandb_workspaces.workspaces")
    except ModuleNotFoundError as error:
        raise ValueError("task=dashboard needs `pip install 'difflens[dashboard]'`.") from error

    sections = _sections(reports, methods=methods, classes=classes, others=others, prompts=prompts)
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"difflens: {sweep}",
        sections=[workspaces.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        runset_settings=workspaces.RunsetSettings(filters=f"Metric('group') == '{sweep}'"),
    )


def _sections(
    reports: Any, *, methods: Sequence[str], classes: Sequence[str], others: Sequence[str], prompts: bool
) -> dict[str, list[Any]]:
    """The panels of each section by its title."""

    def bars(title: str, names: Sequence[str]) -> Any:
        return reports.BarPlot(title=title, metrics=list(names))

    def curves(title: str, names: Sequence[str], x: str) -> Any:
        return reports.LinePlot(title=title, x=x, y=list(names))

    edited = [method for method in methods if method != "original"]
    fd = _PROMPTED if prompts else {"fd_hard": "FD hard"}
    figures = fd | _FIGURES | {f"leakage.{name}.flip_rate": f"leakage of {name}" for name in others}
    fairness = [
        bars(f"{label} by method", [f"{m}/{key}" for m in (edited if key.startswith("leakage") else methods)])
        for key, label in figures.items()
    ]
    trades = [
        reports.ScatterPlot(title=f"FD and {label}: {m}", x=f"{m}/{next(iter(fd))}", y=f"{m}/{key}")
        for m in edited
        for key, label in figures.items()
        if not key.startswith("fd")
    ]
    shares = [bars(f"share of {name}", [f"{m}/shares.{name}.share" for m in methods]) for name in classes]
    inside = [
        curves("SAE: FVU while training", ["sae/fvu"], "sae/update"),
        curves("SAE: L0 and dead share while training", ["sae/l0", "sae/dead_share"], "sae/update"),
        curves("SAE: FVU at every denoising step", ["sae/held_out/fvu_per_step"], STEP),
        curves("probe: accuracy at every denoising step", ["probe/accuracy"], STEP),
    ]
    tables = [reports.WeavePanelSummaryTable(table_name=name) for name in TABLES]
    return {
        "Fairness": fairness,
        "Fairness and its price": trades,
        "Shares": shares,
        "Inside the model": inside,
        "Dose and response, pairs of images, feature cards": tables,
    }


_PROMPTED = {"fd_hard_prompt_mean": "FD hard, mean over prompts", "fd_hard": "FD hard, prompts pooled"}
_FIGURES = {"fd": "FD soft", "fid": "FID", "kid": "KID", "clip_i": "CLIP-I"}
