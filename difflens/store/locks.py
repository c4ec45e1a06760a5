"""One maker per artifact: an exclusive lock file that names the process holding it."""

import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from difflens.store.files import sync

SECONDS_TO_SIGN = 10.0
"""A lock file that still names no owner after this long was left by a process that died while writing it."""

SECONDS_BETWEEN_SIGNS = 30.0
"""The holder of a lock touches its file so often."""

SECONDS_OF_SILENCE = 600.0
"""A lock whose owner on another host, who cannot be asked, has not touched it for so long is taken over."""

log = logging.getLogger(__name__)


def process_start(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None where /proc does not tell.

    It tells a living owner of a lock from a stranger who was given the same number later.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None


def this_process() -> dict[str, Any]:
    """What a lock file says about its owner."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": process_start(os.getpid())}


def read_owner(path: Path) -> dict[str, Any] | None:
    """The owner named in a lock file; None if there is no lock or its owner has not finished writing it."""
    try:
        owner = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return owner if isinstance(owner, dict) and {"pid", "host"} <= owner.keys() else None


def is_stale(owner: dict[str, Any]) -> bool:
    """Whether the owner is known to be dead; never true for an owner on another host, who cannot be asked."""
    if not is_here(owner):
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    started = process_start(owner["pid"])
    return None not in (started, owner.get("started")) and started != owner["started"]


def is_here(owner: dict[str, Any] | None) -> bool:
    """Whether the owner is a process of this host, which can be asked whether it lives."""
    return owner is not None and owner["host"] == socket.gethostname()


def remove_stale(path: Path) -> None:
    """Remove the lock of a dead process.

    The parent folder is held with `flock` meanwhile: without it two waiting processes could both see the dead owner,
    and the slower one would remove the lock that the faster one has just taken.
    """
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not path.exists():
            return
        owner, silence = read_owner(path), time.time() - path.stat().st_mtime
        patience = SECONDS_OF_SILENCE if owner else SECONDS_TO_SIGN
        if (owner and is_stale(owner)) or (silence > patience and not is_here(owner)):
            log.info("removing %s: the process that held it is gone", path)
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def try_to_take(path: Path) -> bool:
    """Create the lock file unless there is one."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(this_process(), file)
        sync(path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


@contextmanager
def touched(path: Path) -> Iterator[None]:
    """Touch a file now and then inside the block, as a sign of life for those who wait on other hosts."""
    done = threading.Event()

    def touch() -> None:
        while not done.wait(SECONDS_BETWEEN_SIGNS):
            with suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def exclusive(path: Path, what: str, *, poll_seconds: float = 0.5) -> Iterator[None]:
    """Hold the lock file `path` inside the block, waiting (and saying once for whom) while another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while not try_to_take(path):
        remove_stale(path)
        owner = read_owner(path)
        if owner is not None and not told:
            log.info(
                "waiting for process %s on %s, which is making %s (if it is dead, delete %s)",
                owner["pid"], owner["host"], what, path,
            )  # fmt: skip
            told = True
        if path.exists():
            time.sleep(poll_seconds)
    try:
        with touched(path):
            yield
    finally:
        path.unlink(missing_ok=True)
