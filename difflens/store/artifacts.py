"""Artifacts: folders named by a fingerprint of what made them, complete and unchanged or refused."""

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difflens.store.errors import ArtifactError, ArtifactExistsError, ArtifactMismatchError
from difflens.store.files import (
    TEMPORARY,
    check_space,
    free_space,
    human_size,
    is_disk_full,
    sha256_of,
    sync,
    write_json,
)
from difflens.store.fingerprints import canonical, describe_difference, fingerprint, require_equal
from difflens.store.locks import exclusive, is_stale, read_owner
from difflens.store.shards import finished_shards, is_finished, read_shard, write_shard

__all__ = [
    "Artifact",
    "ArtifactStore",
    "check_space",
    "describe_difference",
    "fingerprint",
    "finished_shards",
    "is_finished",
    "read_shard",
    "require_equal",
    "write_shard",
]

SPEC = "spec.json"
FILES = "files.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: `folder` holds spec.json, files.json and the files it lists, each with SHA-256 and size."""

    kind: str
    fingerprint: str
    folder: Path
    spec: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """The mapping in spec.json or files.json.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    try:
        record = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = None
    entries = record.values() if name == FILES and isinstance(record, dict) else ()
    if not isinstance(record, dict) or not all(isinstance(e, dict) and {"sha256", "size"} <= e.keys() for e in entries):
        raise ArtifactError(f"{folder / name} is missing or damaged; delete {folder} to rebuild it.")
    return record


def check_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that every recorded file is there with the bytes that were recorded.

    Raises:
        ArtifactError: a file is missing, has another size, or another SHA-256 (a flipped bit loads silently otherwise).
    """
    for name, record in files.items():
        path = folder / name
        if not path.is_file():
            trouble = "is missing"
        elif path.stat().st_size != record["size"]:
            trouble = f"has {path.stat().st_size} bytes instead of {record['size']}"
        elif sha256_of(path) != record["sha256"]:
            trouble = "has been changed (its SHA-256 is not the recorded one)"
        else:
            continue
        raise ArtifactError(f"{path} {trouble}; delete {folder} to rebuild it.")


def seal(folder: Path) -> None:
    """Record every file's SHA-256 and size in files.json, make all readable, and bring all of it onto the disk."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
        elif path.name.startswith(".") and path.name.endswith(TEMPORARY):
            path.unlink()
        elif path not in (folder / SPEC, folder / FILES):
            path.chmod(0o644)
            sync(path)
            files[path.relative_to(folder).as_posix()] = {"sha256": sha256_of(path), "size": path.stat().st_size}
    write_json(folder / FILES, files)
    folder.chmod(0o755)
    for inner in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync(inner)


class ArtifactStore:
    """Artifacts of one outputs folder, at `root/<kind>/<fingerprint of the spec>`."""

    def __init__(self, root: Path) -> None:
        """Nothing is written, and `root` need not exist, before the first artifact is made."""
        self.root = Path(root)

    def path(self, kind: str, spec: Mapping[str, Any]) -> Path:
        """Where the artifact lies, or will lie once made."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", kind):
            raise ValueError(f"artifact kind {kind!r} must be a lower-case word: letters, digits, '_' and '-'.")
        return self.root / kind / fingerprint(spec)

    def find(self, kind: str, spec: Mapping[str, Any]) -> Artifact | None:
        """The finished artifact of this spec with every file checked; None if it has not been made.

        Raises:
            ArtifactError: its folder is there, but a file is missing, truncated or changed, or it is another spec's.
        """
        folder = self.path(kind, spec)
        if not folder.is_dir():
            return None
        artifact = self._read(kind, folder)
        if lines := describe_difference(artifact.spec, spec):
            raise ArtifactMismatchError(
                f"{folder / SPEC} does not fit its name ({lines[0]}); delete {folder} to rebuild it."
            )
        check_files(folder, artifact.files)
        return artifact

    def _read(self, kind: str, folder: Path) -> Artifact:
        spec, files = read_record(folder, SPEC), read_record(folder, FILES)
        return Artifact(kind, folder.name, folder, spec, files)

    @contextmanager
    def create(self, kind: str, spec: Mapping[str, Any], *, resumable: bool = False) -> Iterator[Path]:
        """Yield a folder to fill; it becomes the artifact, atomically, when the block ends without an exception.

        Otherwise the folder is removed, or kept for the next attempt if `resumable`. An exclusive lock is held.

        Raises:
            ArtifactExistsError: the artifact is already there; artifacts are never overwritten.
            ArtifactError: the disk is full.
        """
        folder = self.path(kind, spec)
        partial = folder.with_name(folder.name + TEMPORARY)
        what = f"{kind} {folder.name}"
        try:
            with exclusive(folder.with_name(folder.name + ".lock"), what):
                if folder.exists():
                    raise ArtifactExistsError(f"{folder} exists and is not overwritten; delete it to rebuild it.")
                with self._filling(partial, resumable=resumable):
                    write_json(partial / SPEC, canonical(spec))
                    yield partial
                    seal(partial)
                    os.replace(partial, folder)
                sync(folder.parent)
        except Exception as error:
            if is_disk_full(error):
                kept = " What is finished is kept." if resumable else ""
                raise ArtifactError(
                    f"the disk of {self.root} is full ({human_size(free_space(self.root))} free) while making {what}; "
                    f"free some space and run the same command again.{kept}"
                ) from error
            raise

    @contextmanager
    def _filling(self, partial: Path, *, resumable: bool) -> Iterator[None]:
        if partial.exists() and not resumable:
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        try:
            yield
        except BaseException:
            if not resumable:
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def get_or_create(
        self, kind: str, spec: Mapping[str, Any], make: Callable[[Path], object], *, resumable: bool = False
    ) -> tuple[Artifact, bool]:
        """The artifact of this spec, made by `make(folder)` if need be, and whether it was there already."""
        found = self._sound(kind, spec)
        if found is None:
            try:
                with self.create(kind, spec, resumable=resumable) as folder:
                    make(folder)
                return self._read(kind, self.path(kind, spec)), False
            except ArtifactExistsError:
                # Another process made it while this one waited for the lock.
                found = self.find(kind, spec)
                assert found is not None
        return found, True

    def _sound(self, kind: str, spec: Mapping[str, Any]) -> Artifact | None:
        """The artifact, if it is there and undamaged; a damaged one is said and removed, so that it is made anew."""
        try:
            return self.find(kind, spec)
        except ArtifactMismatchError:
            # Another artifact under this name: somebody moved it, and may want it back.
            raise
        except ArtifactError as error:
            folder = self.path(kind, spec)
            log.warning("%s is made anew: %s", f"{kind} {folder.name}", str(error).split("; delete")[0])
            # Renamed first: whoever looks at the same moment finds a whole folder or none.
            broken = folder.with_name(f"{folder.name}.broken-{os.getpid()}")
            os.rename(folder, broken)
            shutil.rmtree(broken)
            return None

    def join(
        self,
        kind: str,
        spec: Mapping[str, Any],
        make: Callable[[Path], object] | None,
        *,
        first: Callable[[], dict[str, Any]],
    ) -> tuple[Artifact, bool]:
        """What `get_or_create` is to the first rank of a distributed run, for the other ranks.

        They wait until the artifact is published, by the first rank or by another program that came first; where all
        ranks work on it together, they run `make` once the first rank holds the lock; only the first seals what is made.

        Args:
            kind: of the artifact.
            spec: what makes it.
            make: their part of the work, None where the first rank works alone.
            first: tells the `pid` and `host` of the first rank.

        Raises:
            ArtifactError: the first rank, or the process that started this one, has ended before it was published.
        """
        folder, parent = self.path(kind, spec), os.getppid()
        found = None
        while found is None and folder.is_dir():
            try:
                found = self.find(kind, spec)
            except ArtifactMismatchError:
                raise
            except ArtifactError:
                # The first rank removes a damaged one.
                if os.getppid() != parent:
                    raise
                time.sleep(0.2)
        if found is not None:
            return found, True
        while not folder.is_dir():
            owner = read_owner(folder.with_name(folder.name + ".lock"))
            leader = first()
            if make is not None and owner is not None and leader and owner.items() >= leader.items():
                make(folder.with_name(folder.name + TEMPORARY))
                make = None
            if os.getppid() != parent or (leader and is_stale(leader)):
                raise ArtifactError(f"the first rank ended before it had made {folder}.")
            time.sleep(0.2)
        return self._read(kind, folder), False
