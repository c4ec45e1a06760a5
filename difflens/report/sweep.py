"""A sweep as tidy rows, one per job and method, read from the jobs' folders."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difflens.report.run_folder import Json, read_run
from difflens.report.wording import rows_of

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        name: the name of its folder.
        overrides: what it was asked, by key.
        folder: its run folder, which need not exist.
        status: `done`, `failed`, `running` (or killed), or `not started`.
        error: why it failed, or nothing.
        seconds: how long it took, if that is known.
        metrics: its metrics.json; empty if it has none.
        dose: the dose–response curve of its calibration, if it has one.
    """

    name: str
    overrides: Mapping[str, str]
    folder: Path
    status: str
    error: str
    seconds: float | None
    metrics: Json
    dose: Json | None


def read_jobs(sweep: Path, asked: Sequence[Sequence[str]] | None = None) -> list[Job]:
    """The jobs of a sweep.

    Args:
        sweep: the folder that holds a folder for each job.
        asked: the overrides of every job, whose folders are numbered from 0; None takes the jobs that are there.

    Raises:
        ValueError: there is no such folder, or no job in it.
    """
    if not sweep.is_dir():
        raise ValueError(f"there is no sweep folder {str(sweep)!r}; give one that `difflens -m` made (sweep=...).")
    if asked is None:
        names = [path.parent.name for path in sweep.glob("*/status.json")]
        jobs = [_read_job(sweep / name, None) for name in sorted(names, key=lambda name: (len(name), name))]
    else:
        jobs = [_read_job(sweep / str(number), overrides) for number, overrides in enumerate(asked)]
    if not jobs:
        raise ValueError(f"the folder {str(sweep)!r} holds no job; give one that `difflens -m` made (sweep=...).")
    return jobs


def _read_job(folder: Path, overrides: Sequence[str] | None) -> Job:
    if not folder.is_dir():
        return Job(folder.name, _by_key(overrides or ()), folder, "not started", "", None, {}, None)
    run = read_run(folder)
    words = run.status.get("overrides", []) if overrides is None else overrides
    done = run.status.get("status") == "done"
    return Job(
        name=folder.name,
        overrides=_by_key(words),
        folder=folder,
        status=str(run.status.get("status", "not started")),
        error=str(run.status.get("error", "")),
        seconds=run.status.get("seconds"),
        metrics=run.metrics if done else {},
        dose=run.report.get("dose") if done else None,
    )


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (override.partition("=") for override in overrides)
    return {key.lstrip("+~"): value for key, _, value in pairs}


def flat(data: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and word of nested mappings by dotted path; lists are left out."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from flat(value, f"{where}.{key}".lstrip("."))
    elif not isinstance(data, list):
        yield where, data


def tidy_rows(jobs: Sequence[Job]) -> list[Row]:
    """A row per job and method with every measure as a column; a job without results has one row without measures."""
    rows = []
    for job in jobs:
        about = {"job": job.name, "status": job.status, "error": job.error, "seconds": job.seconds, **job.overrides}
        for row in rows_of(job.metrics) or [{}]:
            study = {key: job.metrics.get(key) for key in ("model", "attribute")} if row else {}
            rows.append({**about, **study, **dict(flat(row))})
    return rows


def as_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV; what a row lacks is an empty cell."""
    stream = io.StringIO()
    columns = dict.fromkeys(column for row in rows for column in row)
    writer = csv.DictWriter(stream, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
