"""A sweep: one folder per command, whose finished jobs are skipped when the same command comes again."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table
from rich.text import Text

from difflens.store.artifacts import remove
from difflens.store.errors import JobFailedError
from difflens.store.exits import Ending
from difflens.store.files import point_latest
from difflens.store.fingerprints import fingerprint
from difflens.store.locks import exclusive
from difflens.store.ranks import process_rank
from difflens.store.run import REVISIONS, resolve

log = logging.getLogger(__name__)


def sweep_name(overrides: Sequence[str]) -> str:
    """The folder of a sweep: words of its overrides and a hash of them, the same for the same command."""
    overrides = list(overrides)
    # The words are for people, and cut; the hash tells any two commands apart.
    words = re.sub(r"[^a-z0-9]+", "-", " ".join(overrides).lower()).strip("-")[:48].strip("-")
    digest = hashlib.sha256(json.dumps(overrides).encode()).hexdigest()[:8]
    return f"{words}_{digest}".lstrip("_")


class Told(JobReturn):
    """What Hydra keeps of a job whose failure was told in one line when it happened; Hydra's own class tells it again."""

    @property
    def return_value(self) -> Any:
        """The job's result, or its exception."""
        if self.status == JobStatus.FAILED:
            raise self._return_value
        return self._return_value


class SweepCallback(Callback):  # type: ignore[misc]
    """Keeps the folder of the sweep that this process leads, and points `latest_sweep` to it."""

    # On the class: Hydra builds the callback itself, and `close_sweep` is handed none.
    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra in the process that leads the sweep, before its jobs."""
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        point_latest(Path(config.paths.outputs), folder, name="latest_sweep")
        SweepCallback.folder = folder

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Called by Hydra in the process of each job, which may be a worker."""
        job_return.__class__ = Told


def job_key(cfg: DictConfig) -> str | None:
    """What decides a job's results: its configuration but for where things lie, and the revisions of the code.

    None where the configuration does not resolve; running the job says why.
    """
    try:
        config = {key: value for key, value in resolve(cfg).items() if key != "paths"}
        return fingerprint({"config": config, "revisions": REVISIONS})
    except (ValueError, OmegaConfBaseException):
        return None


@contextmanager
def job_to_do(cfg: DictConfig, folder: Path) -> Iterator[tuple[bool, str | None]]:
    """Whether a job of a sweep is still to be done, and its key; its folder is locked meanwhile, and cleared if it is."""
    key = job_key(cfg)
    if process_rank():
        # The lock is held, and the folder cleared, by the first of the job's processes.
        yield not is_done(folder, key), key
        return
    # Two shells with the same command share the folder. It is looked at under the lock: the other may have done the job
    # while this one waited.
    with exclusive(folder / ".job.lock", f"job {folder.name} of the sweep"):
        to_do = not is_done(folder, key)
        if to_do:
            clear(folder)
        else:
            log.info("job %s was done before and is skipped", folder.name)
        yield to_do, key


def is_done(folder: Path, key: str | None) -> bool:
    """Whether a job's folder holds the finished results of this key."""
    status = read_status(folder / "status.json")
    # Done by another configuration, or by code whose numbers have changed since, is not done.
    return key is not None and (status.get("status"), status.get("key")) == ("done", key)


def read_status(path: Path) -> dict[str, Any]:
    """A job's status.json; empty if there is none or it is damaged."""
    with suppress(OSError, ValueError):
        status = json.loads(path.read_bytes())
        return status if isinstance(status, dict) else {}
    return {}


def clear(folder: Path) -> None:
    """Remove what an earlier attempt left in a job's folder; Hydra has opened the log already, and the lock is this job's."""
    for path in folder.iterdir():
        if path.suffix not in (".log", ".lock"):
            remove(path)


def job_states(sweep: Path) -> dict[str, dict[str, Any]]:
    """The status of every job of a sweep that has begun, by the name of its folder, in the order of the numbers."""
    found = {path.parent.name: read_status(path) for path in sweep.glob("*/status.json")}
    # Folders are numbered without leading zeros: by length first, 10 comes after 9.
    return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))


def close_sweep() -> None:
    """Print the closing table of the sweep that this process led, if it led one: how each job ended, and how long it took."""
    sweep = SweepCallback.folder
    states = {} if sweep is None else job_states(sweep)
    if sweep is None or not states:
        return
    table = Table(box=None)
    for column in ("job", "overrides", "ended", "time", "why"):
        table.add_column(column, overflow="fold", justify="right" if column in ("job", "time") else "left")
    for name, state in states.items():
        took = str(timedelta(seconds=round(state["seconds"]))) if "seconds" in state else ""
        cells = (name, " ".join(state.get("overrides", [])), state.get("status", "?"), took, state.get("error", ""))
        # As Text: rich would take the brackets of an override for markup.
        table.add_row(*(Text(str(cell)) for cell in cells))
    console = Console()
    # Not wrapped, so that the path can be copied.
    console.print(Text(f"sweep {os.path.relpath(sweep)}", style="table.title"), soft_wrap=True)
    console.print(table)


def sweep_ending(failure: JobFailedError) -> Ending:
    """The last line of a sweep in which jobs failed."""
    sweep = failure.folder.parent
    states = job_states(sweep)
    failed = {name: state for name, state in states.items() if state.get("status") == "failed"}
    which = "; ".join(f"{name} ({' '.join(state['overrides'])})" for name, state in failed.items())
    code = min((state["exit_code"] for state in failed.values()), default=failure.exit_code)
    line = f"{len(failed)} of {len(states)} jobs failed: {which}. The same command again redoes these alone."
    return Ending(code, f"{line} See {os.path.relpath(sweep)}.")
