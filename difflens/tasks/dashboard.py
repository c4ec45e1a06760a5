"""`task=dashboard`: a ready Weights & Biases workspace for a sweep, written to its folder and, with a key, created."""

import os
from pathlib import Path

from omegaconf import DictConfig

from difflens.report.sweep import Job, read_jobs
from difflens.report.wording import rows_of
from difflens.store.files import write_text
from difflens.store.run import Run
from difflens.tasks.aggregate import asked_overrides
from difflens.training.workspace import describe_workspace


def dashboard(cfg: DictConfig, run: Run) -> None:
    """Write `dashboard.json` into the folder of the sweep in `sweep`; create the workspace if WANDB_API_KEY is set.

    Raises:
        ValueError: there is no sweep, the extra is not installed, or a key is set but no entity.
    """
    sweep = Path(cfg.sweep)
    jobs = read_jobs(sweep, asked_overrides(sweep))
    online = bool(os.environ.get("WANDB_API_KEY")) and cfg.task.online
    if online and not cfg.task.entity:
        raise ValueError("task.entity must name the user or team of Weights & Biases that the workspace is made for.")
    with run.stage("dashboard"):
        workspace = describe_workspace(
            sweep.resolve().name,
            entity=cfg.task.entity or "entity",
            project=cfg.task.project,
            methods=list(dict.fromkeys(str(row["method"]) for job in jobs for row in rows_of(job.metrics))),
            classes=_classes(jobs),
            others=_others(jobs),
            prompts=any(row.get("prompts") for job in jobs for row in rows_of(job.metrics)),
        )
        path = write_text(sweep / "dashboard.json", workspace._to_model().model_dump_json(by_alias=True, indent=2))
        run.say(f"dashboard: {path}")
        if online:
            run.say(f"created {workspace.save().url}")
        else:
            run.say("not created: that needs WANDB_API_KEY, task.entity and task.online=true")


def _classes(jobs: list[Job]) -> list[str]:
    return list(dict.fromkeys(name for job in jobs for name in job.metrics.get("classes") or []))


def _others(jobs: list[Job]) -> list[str]:
    """The attributes on which leakage was measured."""
    return list(
        dict.fromkeys(name for job in jobs for row in rows_of(job.metrics) for name in row.get("leakage") or {})
    )
