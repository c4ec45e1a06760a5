"""One maker per artifact: the system's own lock on a file, which ends with the process that holds it."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from difflens.store.errors import ArtifactError

log = logging.getLogger(__name__)


def this_process() -> dict[str, Any]:
    """Process id and host, by which other processes know this one."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


def is_gone(owner: dict[str, Any]) -> bool:
    """Whether a process is known to have ended; never true of one on another host, which cannot be asked."""
    if owner["host"] != socket.gethostname():
        return False
    try:
        # Signal 0 is not delivered, only checked: a process that may not be signalled is alive and somebody else's.
        os.kill(owner["pid"], 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False


def read_owner(path: Path) -> dict[str, Any] | None:
    """The process that holds a lock, as its file tells; None where nobody does, or the file does not tell."""
    try:
        with path.open("rb") as file:
            # No more, since any file may lie here; filelock's soft lock puts the PID's namespace behind a `?`.
            pid, host, *_ = file.read(1000).decode().splitlines()
        return {"pid": int(pid), "host": host.partition("?")[0]}
    except (OSError, ValueError):
        return None


@contextmanager
def exclusive(path: Path, what: str, *, poll_seconds: float = 0.5) -> Iterator[None]:
    """Hold the lock file `path` inside the block, waiting (and saying once for whom) while another process has it.

    Raises:
        ArtifactError: what lies at `path` is no file.
    """
    # flock: the kernel lets go however the holder ends, so nothing need tell the dead from the living, and what a damaged
    # file says does not matter. A file system without it makes filelock fall back to its soft lock by itself, which takes
    # over from the dead of this host; from those of another one nobody can, so that the file to delete is named.
    # The file stays: whoever removed it might divide those who wait between the old file and a new one.
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, poll_interval=poll_seconds)
    try:
        _take(lock, path, what)
    except OSError as error:
        if path.is_symlink() or path.is_dir():
            raise ArtifactError(f"{path} is no lock file; remove it.") from error
        raise
    try:
        _sign(lock, path, "\n".join(map(str, this_process().values())))
        yield
    finally:
        # Emptied while it is still held: afterwards it may be the next holder's. A full disk must not keep the lock.
        with suppress(OSError):
            _sign(lock, path, "")
        lock.release()


def _take(lock: BaseFileLock, path: Path, what: str) -> None:
    try:
        # Without waiting at first, only to say for whom before the wait begins.
        lock.acquire(blocking=False)
    except Timeout:
        owner = read_owner(path)
        whom = f"process {owner['pid']} on {owner['host']}" if owner else "another process"
        log.info("waiting for %s, which is making %s (if it is dead, delete %s)", whom, what, path)
        lock.acquire()


def _sign(lock: BaseFileLock, path: Path, text: str) -> None:
    """Say in the file who holds it; the soft lock does so itself, in the same words."""
    if not isinstance(lock, SoftFileLock):
        path.write_text(text)
