"""A sweep: one folder per command, whose finished jobs are skipped when the same command comes again."""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table
from rich.text import Text

from difflens.store.errors import JobFailedError
from difflens.store.exits import Ending
from difflens.store.files import point_latest
from difflens.store.fingerprints import fingerprint
from difflens.store.locks import exclusive
from difflens.store.ranks import process_rank
from difflens.store.run import REVISIONS, resolve

log = logging.getLogger(__name__)

OPEN_FILES = ("*.log", "*.lock")
"""What stays when a job's folder is cleared: Hydra has opened the log already, and the lock is this job's."""


def sweep_name(overrides: Sequence[str]) -> str:
    """The folder of a sweep: words of its overrides and a hash of them, the same for the same command."""
    overrides = list(overrides)
    words = re.sub(r"[^a-z0-9]+", "-", " ".join(overrides).lower()).strip("-")[:48].strip("-")
    digest = hashlib.sha256(json.dumps(overrides).encode()).hexdigest()[:8]
    return f"{words}_{digest}".lstrip("_")


def register_resolvers() -> None:
    """Make `${sweep_name:overrides}` known; a job takes the sweep's own value, which is cached in its configuration."""
    OmegaConf.register_new_resolver("sweep_name", sweep_name, use_cache=True, replace=True)


class SweepCallback(Callback):  # type: ignore[misc]
    """Keeps the folder of the sweep that this process leads, and points `latest_sweep` to it."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra in the process that leads the sweep, before its jobs."""
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        point_latest(Path(config.paths.outputs), folder, name="latest_sweep")
        SweepCallback.folder = folder


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
    with exclusive(folder / ".job.lock", f"job {folder.name} of the sweep"):
        to_do = not is_done(folder, key)
        if to_do:
            clear(folder)
        else:
            log.info("job %s was done before and is skipped", folder.name)
        yield to_do, key


def is_done(folder: Path, key: str | None) -> bool:
    """Whether a job's folder holds the finished results of this key."""
    status = read_status(folder)
    return key is not None and status.get("status") == "done" and status.get("key") == key


def read_status(folder: Path) -> dict[str, Any]:
    """A job's status.json; empty if there is none or it is damaged."""
    try:
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def clear(folder: Path) -> None:
    """Remove what an earlier attempt left in a job's folder."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not any(path.match(pattern) for pattern in OPEN_FILES):
            path.unlink()


def job_states(sweep: Path) -> dict[str, dict[str, Any]]:
    """The status of every job of a sweep that has begun, by the name of its folder, in the order of the numbers."""
    found = {path.parent.name: read_status(path.parent) for path in sweep.glob("*/status.json")}
    return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))


def closing_table(states: Mapping[str, Mapping[str, Any]]) -> Table:
    """One line per job: what it was asked, how it ended, how long it took."""
    table = Table(box=None)
    for column in ("job", "overrides", "ended", "time", "why"):
        table.add_column(column, overflow="fold", justify="right" if column in ("job", "time") else "left")
    for name, state in states.items():
        seconds = state.get("seconds")
        took = str(timedelta(seconds=round(seconds))) if seconds is not None else ""
        cells = (name, " ".join(state.get("overrides", [])), str(state.get("status", "?")), took)
        table.add_row(*map(Text, (*cells, str(state.get("error", "")))))
    return table


def close_sweep() -> None:
    """Print the closing table of the sweep that this process led, if it led one."""
    sweep = SweepCallback.folder
    if sweep is not None and (states := job_states(sweep)):
        console = Console()
        console.print(Text(f"sweep {os.path.relpath(sweep)}", style="table.title"), soft_wrap=True)
        console.print(closing_table(states))


def sweep_ending(failure: JobFailedError) -> Ending:
    """The last line of a sweep in which jobs failed."""
    sweep = failure.folder.parent
    states = job_states(sweep)
    failed = {name: state for name, state in states.items() if state.get("status") == "failed"}
    which = "; ".join(f"{name} ({' '.join(state['overrides'])})" for name, state in failed.items())
    code = min((state["exit_code"] for state in failed.values()), default=failure.exit_code)
    line = f"{len(failed)} of {len(states)} jobs failed: {which}. The same command again redoes these alone."
    return Ending(code, f"{line} See {os.path.relpath(sweep)}.")
