"""Files on a disk that may fill up or lose power: atomic writes, hashes, free space."""

import errno
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

TEMPORARY = ".partial"
"""Suffix of files and folders that are still being written."""

FILES = "files.json"
"""What a finished artifact lists its files in."""

log = logging.getLogger(__name__)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal."""
    # Read piece by piece: a file may be larger than the memory.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, from the system's cache onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its mode (0644: safetensors leaves 0600) and its final name, atomically."""
    temporary.chmod(0o644)
    # On the disk before it is renamed: after a power cut the name could lead to an empty file.
    sync(temporary)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> Path:
    """Write a text file so that a reader sees the old or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Hidden, in the same folder and with the process's number: no reader takes it for the file, and two writers
    # do not meet.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        temporary.write_text(text, encoding="utf-8")
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(path: Path, data: Any) -> Path:
    """Write readable JSON atomically (ValueError: the data hold NaN or infinity, which JSON does not know)."""
    return write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def human_size(size: int | float) -> str:
    """A number of bytes in the largest binary unit that leaves at least 1: 1536 is `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def disk_space(path: Path) -> tuple[int, int]:
    """Total and free bytes of the disk that holds `path`, which need not exist yet."""
    # What this user may still write, which is less than what is unused where root has a reserve.
    total, _, free = shutil.disk_usage(next(at for at in (path.absolute(), *path.absolute().parents) if at.exists()))
    return total, free


def room_for(folder: Path, needed_bytes: int, *, there: bool = False) -> None:
    """Check that what is to lie under `folder`, which need not exist, fits on its disk; else ValueError.

    What may be `there` already is refused only where it is larger than the whole disk.
    """
    total, free = disk_space(folder)
    room, word = (total, "has") if there else (free, "has free")
    if needed_bytes > room:
        raise ValueError(
            f"{human_size(needed_bytes)} will not fit under {folder}, whose disk {word} {human_size(room)}; "
            "free some space, set paths.artifacts to a larger disk or ask for less."
        )
    if not there:
        log.info("%s to write under %s, %s free", human_size(needed_bytes), folder, human_size(room))


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one it was raised from, says that the disk or the quota is exhausted.

    safetensors and torch report a full disk as errors of their own types: only their text tells.
    """
    # EDQUOT: on a shared disk one's own quota may end long before the disk.
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    cause = error.__cause__ or error.__context__
    return "No space left on device" in str(error) or (cause is not None and is_disk_full(cause))


def point_latest(outputs: Path, folder: Path, *, name: str = "latest") -> None:
    """Make `outputs/<name>` a link to the folder, atomically: at every moment it points to a run, or to a sweep."""
    latest = outputs / name
    if latest.exists() and not latest.is_symlink():
        log.warning("%s is not a link; it is left as it is and does not point to %s", latest, folder)
        return
    temporary = outputs / f".{name}.{os.getpid()}{TEMPORARY}"
    temporary.unlink(missing_ok=True)
    # A relative link still leads to the run when the outputs are moved as a whole.
    temporary.symlink_to(os.path.relpath(folder, outputs), target_is_directory=True)
    # By a rename: between removing a link and making the next one a reader would find none.
    os.replace(temporary, latest)
