"""The jobs of a sweep: what each was asked and what it measured, as tidy rows, and what the sweep varies."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from difflens.report.run_folder import Json, flat, read_run, rows_of, unvalidated

AFTER_SAMPLING = ("task", "data", "sae", "width", "probe", "attribution", "mitigation", "strength", "seed")
"""Groups that cannot change the unmitigated images and what is measured on them; exceptions are in `TARGET`."""

TARGET = ("mitigation", "mitigation.target")
"""FD is the distance from the target, which a file of the group may set too."""

STRENGTHS = ("strength", "mitigation.times", "mitigation.strength")
"""Keys that say how strongly is edited, the first of them first."""

WORDS = {"none": 0.0, "half": 0.5, "calibrated": 1.0, "double": 2.0}
"""Choices of the group `strength` as multiples of the calibrated one; the published strength is none."""

SEEDS = {
    "seed": "how the autoencoder starts and meets its tokens, and which images train it and the probe",
    "data.base_seed": "the images that are learned from",
    "metric.base_seed": "the evaluation images",
}
"""What each seed of the configuration draws."""

OTHER_IMAGES = "metric.base_seed"


@dataclass(frozen=True)
class Job:
    """One job of a sweep: what it was asked (`overrides`, by key), and what is in its folder, which need not exist.

    `status` is `done`, `failed`, `running` (or killed), or `not started`; only of a job that is done are there `metrics` and
    `dose`, the dose–response curve of its calibration.
    """

    name: str
    overrides: Mapping[str, str]
    folder: Path
    status: str = "not started"
    error: str = ""
    seconds: float | None = None
    metrics: Json = field(default_factory=dict)
    dose: Json | None = None
    manifest: Json = field(default_factory=dict)

    @property
    def attribute(self) -> str:
        """The attribute under study."""
        return str(self.metrics.get("attribute", ""))


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
        # Shorter names first: jobs are numbered, and 10 comes after 9.
        names = sorted((path.parent.name for path in sweep.glob("*/status.json")), key=lambda name: (len(name), name))
        jobs = [_read_job(sweep / name, None) for name in names]
    else:
        # By what was asked, which knows of jobs that never began.
        jobs = [_read_job(sweep / str(number), overrides) for number, overrides in enumerate(asked)]
    if not jobs:
        raise ValueError(f"the folder {str(sweep)!r} holds no job; give one that `difflens -m` made (sweep=...).")
    return jobs


def _read_job(folder: Path, overrides: Sequence[str] | None) -> Job:
    if not folder.is_dir():
        return Job(folder.name, _by_key(overrides or ()), folder)
    run = read_run(folder)
    # A job that is not done may hold numbers of an earlier attempt in the same folder.
    done = run.status.get("status") == "done"
    return Job(
        name=folder.name,
        overrides=_by_key(run.status.get("overrides", []) if overrides is None else overrides),
        folder=folder,
        status=str(run.status.get("status", "not started")),
        error=str(run.status.get("error", "")),
        seconds=run.status.get("seconds"),
        metrics=run.metrics if done else {},
        dose=run.report.get("dose") if done else None,
        manifest=run.manifest,
    )


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    # `+key` and `++key` ask for the same as `key`.
    pairs = (override.partition("=") for override in overrides)
    return {key.lstrip("+~"): value for key, _, value in pairs}


def tidy_rows(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """A row per job and method with every measure as a column; a job without results has one row without measures."""
    rows = []
    for job in jobs:
        about = {"job": job.name, "status": job.status, "error": job.error, "seconds": job.seconds, **job.overrides}
        for row in rows_of(job.metrics) or [{}]:
            study = {key: job.metrics.get(key) for key in ("model", "attribute")} if row else {}
            if doubtful := unvalidated(job.metrics):
                study["not_validated"] = ", ".join(doubtful)
            rows.append({**about, **study, **dict(flat(row))})
    return rows


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV; what a row lacks is an empty cell."""
    stream = io.StringIO()
    columns = dict.fromkeys(column for row in rows for column in row)
    # The csv module would end lines with a carriage return.
    writer = csv.DictWriter(stream, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def is_seed(key: str) -> bool:
    """Whether an override's key names a seed."""
    return key.rpartition(".")[2] == "seed" or key.endswith("_seed")


def moves_originals(key: str) -> bool:
    """Whether an override's key can change the row of the unmitigated images."""
    # Of `sae.expansion`, `data/site` and `judge/network@judge.scores` the first word is the group.
    return key in TARGET or key.startswith("mitigation.target.") or re.split(r"[./@]", key)[0] not in AFTER_SAMPLING


def seeds_of(jobs: Sequence[Job]) -> list[str]:
    """The keys of all seeds that the jobs were asked for."""
    return list(dict.fromkeys(key for job in jobs for key in job.overrides if is_seed(key)))


def factors_of(jobs: Sequence[Job]) -> list[str]:
    """The keys, other than seeds, whose values differ between jobs."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides if not is_seed(key))
    return [key for key in keys if _differs(key, jobs)]


def _differs(key: str, jobs: Sequence[Job]) -> bool:
    return len({job.overrides.get(key) for job in jobs}) > 1


def strength_axis(factors: Sequence[str]) -> str | None:
    """The factor that is the strength of the edit, None if it was not varied."""
    return next((key for key in STRENGTHS if key in factors), None)


def strength_of(value: str | None) -> float | None:
    """A strength as the command line writes it: a number, one of `WORDS`, or the mean of one for each class; else None."""
    if value in WORDS:
        return WORDS[value]
    try:
        # `{female: 1, male: 2}` is one dose of the sweep: the mean puts it in its place among the others.
        numbers = [float(part.rpartition(":")[2]) for part in (value or "").strip("{} ").split(",")]
    except ValueError:
        return None
    return sum(numbers) / len(numbers)


def doubts_sentence(jobs: Sequence[Job]) -> str:
    """Which attributes in the jobs' numbers were read by a judge that nobody has validated on them; empty if none."""
    names = dict.fromkeys(name for job in jobs for name in unvalidated(job.metrics))
    return f" Read by a judge that was not validated on it: {', '.join(names)}." if names else ""


def spread_sentence(jobs: Sequence[Job]) -> str:
    """What the ± of the comparison covers, and what it does not."""
    varied = [key for key in seeds_of(jobs) if _differs(key, jobs)]
    remedy = f"sweep {OTHER_IMAGES} for the spread over images"
    if not varied:
        return f"One seed per setting, so no spread is known; {remedy}."
    # Named one by one, for a spread over training seeds would be read as one over images too.
    covers = "; ".join(f"{key} ({SEEDS[key]})" if key in SEEDS else key for key in varied)
    sentence = f"Mean ± standard deviation over {covers}."
    same = f" All runs are measured on the same images, whose choice ± does not cover: {remedy}."
    return sentence if OTHER_IMAGES in varied else sentence + same
