"""Artifacts: folders named by a fingerprint of what made them, whole and unchanged or made anew; and their shards."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difflens.store.errors import ArtifactError, ArtifactMismatchError, UserError
from difflens.store.files import (
    FILES,
    TEMPORARY,
    disk_space,
    human_size,
    is_disk_full,
    publish,
    sha256_of,
    sync,
    write_json,
    write_text,
)
from difflens.store.fingerprints import canonical, describe_difference, fingerprint, require_equal
from difflens.store.locks import exclusive, is_gone, read_owner

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Artifact", "ArtifactStore", "fingerprint", "require_equal"]

SPEC = "spec.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: `folder` holds spec.json, files.json and the files it lists, each with SHA-256 and size."""

    kind: str
    fingerprint: str
    folder: Path
    spec: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]

    def __str__(self) -> str:
        """Kind and fingerprint."""
        return f"{self.kind} {self.fingerprint}"

    @property
    def is_there(self) -> bool:
        """Whether all its files still exist."""
        return all((self.folder / name).is_file() for name in self.files)


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """The mapping in spec.json or files.json (ArtifactError: it is missing or damaged)."""
    record = None
    # A ValueError is text that is no JSON, and bytes that are no text.
    with suppress(OSError, ValueError):
        record = json.loads((folder / name).read_text(encoding="utf-8"))
    entries = record.values() if name == FILES and isinstance(record, dict) else ()
    if not isinstance(record, dict) or not all(isinstance(e, dict) and {"sha256", "size"} <= e.keys() for e in entries):
        raise ArtifactError(f"{folder / name} is missing or damaged")
    return record


def check_file(path: Path, record: Mapping[str, Any]) -> None:
    """Check that a file is there with the bytes that were recorded.

    Raises:
        ArtifactError: it is missing, has another size, or another SHA-256 (a flipped bit loads silently otherwise).
    """
    # The cheapest test first: most damage is a lost or shortened file, which need not be hashed.
    if not path.is_file():
        raise ArtifactError(f"{path} is missing")
    if path.stat().st_size != record["size"]:
        raise ArtifactError(f"{path} has {path.stat().st_size} bytes instead of {record['size']}")
    if sha256_of(path) != record["sha256"]:
        raise ArtifactError(f"{path} has been changed (its SHA-256 is not the recorded one)")


def seal(folder: Path) -> None:
    """Record every file's SHA-256 and size in files.json, make all readable, and bring all of it onto the disk."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
        # What a killed attempt left half-written must not become a part of the result.
        elif path.name.startswith(".") and path.name.endswith(TEMPORARY):
            path.unlink()
        # safetensors writes files that their owner alone can read.
        elif path != folder / FILES:
            path.chmod(0o644)
            sync(path)
            files[path.relative_to(folder).as_posix()] = {"sha256": sha256_of(path), "size": path.stat().st_size}
    # Last of all files, as a signature: a folder without it is not finished.
    write_json(folder / FILES, files)
    folder.chmod(0o755)
    # A file survives a power cut only if its entry in the folder does.
    for inner in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync(inner)


def remove(path: Path) -> None:
    """Remove a folder, or whatever else lies in its place."""
    # Of a link only the link itself goes: what it leads to is not the store's.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class ArtifactStore:
    """Artifacts of one outputs folder, at `root/<kind>/<fingerprint of the spec>`."""

    def __init__(self, root: Path) -> None:
        """Nothing is written, and `root` need not exist, before the first artifact is made."""
        self.root = Path(root)

    def path(self, kind: str, spec: Mapping[str, Any]) -> Path:
        """Where the artifact lies, or will lie once made."""
        assert re.fullmatch(r"[a-z0-9][a-z0-9_-]*", kind), kind
        return self.root / kind / fingerprint(spec)

    def lock(self, folder: Path) -> Path:
        """The lock file of an artifact's folder."""
        # Not inside the artifact's folder, which is renamed and removed while the lock is held.
        return self.root / ".locks" / f"{folder.parent.name}-{folder.name}.lock"

    def read(self, kind: str, mark: str) -> Artifact:
        """The finished artifact of a fingerprint, every file of it checked.

        Raises:
            ArtifactError: a file is missing, truncated or changed, the spec included.
        """
        artifact = self._open(kind, mark)
        for name, record in artifact.files.items():
            check_file(artifact.folder / name, record)
        return artifact

    def _open(self, kind: str, mark: str) -> Artifact:
        folder = self.root / kind / mark
        return Artifact(kind, mark, folder, read_record(folder, SPEC), read_record(folder, FILES))

    def find(self, kind: str, spec: Mapping[str, Any]) -> Artifact | None:
        """The finished artifact of this spec with every file checked; None if it has not been made.

        Raises:
            ArtifactError: it is there, but a file is missing, truncated or changed.
            ArtifactMismatchError: it is another spec's: somebody moved it, and may want it back.
        """
        folder = self.path(kind, spec)
        # A link that leads nowhere is there too: damage to be told, and not an artifact that was never made.
        if not os.path.lexists(folder):
            return None
        artifact = self.read(kind, folder.name)
        if lines := describe_difference(artifact.spec, spec):
            raise ArtifactMismatchError(
                f"{folder / SPEC} does not fit its name ({lines[0]}); delete {folder} to rebuild it."
            )
        return artifact

    def get_or_create(
        self, kind: str, spec: Mapping[str, Any], make: Callable[[Path], object], *, resumable: bool = False
    ) -> tuple[Artifact, bool]:
        """The artifact of this spec, and whether it was there already; else `make(folder)` fills a folder.

        The folder becomes the artifact, atomically, when `make` returns; after an exception it is removed, or kept for the
        next attempt if `resumable`. A lock is held meanwhile. A damaged artifact is said, removed and made anew.

        Raises:
            ArtifactError: the disk is full, or the folder was removed meanwhile.
        """
        folder = self.path(kind, spec)
        # Without a lock at first: a finished artifact never changes, and most calls end here.
        with suppress(ArtifactError):
            if found := self.find(kind, spec):
                return found, True
        what = f"{kind} {folder.name}"
        try:
            with exclusive(self.lock(folder), what):
                # Now that nobody else makes or removes it: another process may have made it meanwhile.
                try:
                    found = self.find(kind, spec)
                except ArtifactError as error:
                    log.warning("%s is made anew: %s", what, error)
                    remove(folder)
                    found = None
                if found is None:
                    self._make(folder, spec, make, resumable=resumable)
                # What this process has just hashed and sealed is opened without being hashed again.
                return found or self._open(kind, folder.name), found is not None
        except Exception as error:
            if not is_disk_full(error):
                raise
            kept = " What is finished is kept." if resumable else ""
            raise ArtifactError(
                f"the disk of {self.root} is full ({human_size(disk_space(self.root)[1])} free) while making {what}; "
                f"free some space and run the same command again.{kept}"
            ) from error

    def _make(self, folder: Path, spec: Mapping[str, Any], make: Callable[[Path], object], *, resumable: bool) -> None:
        # Beside its final place, for only on the same disk a rename is atomic.
        partial = folder.with_name(folder.name + TEMPORARY)
        if not (resumable and partial.is_dir()):
            remove(partial)
        partial.mkdir(parents=True, exist_ok=True)
        try:
            write_json(partial / SPEC, canonical(spec))
            make(partial)
            seal(partial)
            # Whole, hashed and on the disk before it gets its name: whoever finds the name finds all of it.
            os.replace(partial, folder)
            sync(folder.parent)
        # Ctrl-C too must leave nothing half-made, unless the next attempt goes on from it.
        except BaseException as error:
            # Whatever has failed: that the folder went away is the cause to tell.
            if isinstance(error, Exception) and not partial.is_dir() and not folder.is_dir():
                raise removed(partial) from error
            if not resumable:
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def join(
        self,
        kind: str,
        spec: Mapping[str, Any],
        make: Callable[[Path], object] | None,
        *,
        first: Callable[[], dict[str, Any]],
    ) -> Artifact:
        """What `get_or_create` is to the first rank of a distributed run, for the other ranks.

        They wait until the artifact is published, by the first rank or by another program that came first; where all
        ranks work on it together (`make` is no None), they run `make` once the first rank holds the lock, whose `pid` and
        `host` `first` tells; only the first seals what is made.

        Raises:
            ArtifactError: the first rank, or the process that started this one, has ended before it was published.
        """
        # A process whose parent has ended gets another one: then the launch is over, and nobody will publish.
        folder, parent = self.path(kind, spec), os.getppid()
        while True:
            with suppress(ArtifactError):  # the first rank makes a damaged one anew
                if found := self.find(kind, spec):
                    return found
            leader = first()
            # Not before the first rank has the lock: until then another program may be at work in this very folder.
            if make is not None and leader and read_owner(self.lock(folder)) == leader:
                make(folder.with_name(folder.name + TEMPORARY))
                make = None
            if os.getppid() != parent or (leader and is_gone(leader)):
                raise ArtifactError(f"the first rank ended before it had made {folder}.")
            time.sleep(0.2)


def removed(what: object) -> UserError:
    """What to say of a folder that went away while the run used it."""
    return UserError(f"{what} was removed while this run used it; run the same command again to make it anew.")


SUFFIX = ".safetensors"
"""Of a shard, which is complete on disk or not there: an interrupted stage goes on from those that are."""


def hash_path(shard: Path) -> Path:
    """Where a shard's SHA-256 lies; it is written last, so its presence says that the shard is complete."""
    return shard.with_name(f"{shard.name}.sha256")


def write_shard(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> Path:
    """Write tensors as `<name>.safetensors` and its SHA-256 next to it; a crash leaves no shard that looks finished."""
    # Imported by need: the store is also used where torch is not.
    from safetensors.torch import save_file

    shard = folder / f"{name}{SUFFIX}"
    shard.parent.mkdir(parents=True, exist_ok=True)
    # The sign of completeness goes first and comes last, so that no crash leaves it beside other bytes.
    hash_path(shard).unlink(missing_ok=True)
    temporary = shard.with_name(f".{shard.name}{TEMPORARY}")
    try:
        # safetensors refuses views, such as transposed tensors.
        save_file({key: value.detach().contiguous() for key, value in tensors.items()}, temporary)
        digest = sha256_of(temporary)
        publish(temporary, shard)
    finally:
        temporary.unlink(missing_ok=True)
    write_text(hash_path(shard), digest + "\n")
    return shard


def read_shard(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one shard."""
    from safetensors.torch import load_file

    return load_file(folder / f"{name}{SUFFIX}")


def is_finished(folder: Path, name: str) -> bool:
    """Whether a shard is complete and its bytes are those that were written."""
    shard = folder / f"{name}{SUFFIX}"
    if not shard.is_file() or not hash_path(shard).is_file():
        return False
    # Hashed again, for safetensors loads a flipped bit without a word.
    return hash_path(shard).read_bytes().strip() == sha256_of(shard).encode()


def shards_of(folder: Path) -> list[Path]:
    """The shards of a folder in the order of their names: of a finished artifact those that it lists and no stray file."""
    listed = folder / FILES
    there = json.loads(listed.read_bytes()) if listed.is_file() else [path.name for path in folder.glob("*")]
    return sorted(folder / name for name in there if name.startswith("shard-") and name.endswith(SUFFIX))
