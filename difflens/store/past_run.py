"""The artifacts that a finished run made or used, found again from its folder alone."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from difflens.store.artifacts import Artifact, ArtifactStore
from difflens.store.errors import ArtifactError

log = logging.getLogger(__name__)


def newest_having(path: Path, has: Callable[[Path], bool]) -> Path:
    """The folder itself, or, where it is a link such as `outputs/latest`, the newest of its kind that has what is asked for.

    Every command moves that link, also one that makes nothing to be read; which folder it is then is said.
    """
    if not path.is_symlink() or has(path):
        return path
    kinds = ("runs/*/*", "sweeps/*/*") if path.name == "latest" else ("sweeps/*",)
    folders = [folder for kind in kinds for folder in path.parent.glob(kind) if folder.is_dir()]
    found = next((each for each in sorted(folders, key=_made, reverse=True) if has(each)), path)
    if found is not path:
        # Said as a warning: who calls from Python sees nothing less.
        log.warning("%s has not what is asked for; taken is the newest that has: %s", path, found)
    return found


def _made(folder: Path) -> float:
    """When a run, or the last job of a sweep, began; 0 for a folder that is neither."""
    return max(
        (file.stat().st_mtime for file in (*folder.glob("config.yaml"), *folder.glob("*/config.yaml"))), default=0.0
    )


def recorded(run: Path) -> list[dict[str, Any]] | None:
    """The artifacts in a run's manifest; None where the folder is no run's."""
    try:
        entries = json.loads((run / "manifest.json").read_bytes())["artifacts"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entries if isinstance(entries, list) else None


class RunArtifacts:
    """The artifacts of a run, found from one to the next by the fingerprints in their specs.

    They are looked for where the run's configuration says, and beside the run, in case both have been moved.

    Args:
        run: the run's folder; of `outputs/latest` the newest run that has artifacts of `kind`.
        kind: of artifact that is asked for.

    Raises:
        ValueError: it is no run's folder.
    """

    def __init__(self, run: str | Path, kind: str) -> None:
        self.run = newest_having(
            Path(run), lambda folder: any(entry["kind"] == kind for entry in recorded(folder) or ())
        ).resolve()
        entries = recorded(self.run)
        if entries is None:
            raise ValueError(f"{str(run)!r} is no run folder; give one that difflens made, such as 'outputs/latest'.")
        self.entries = entries
        self.places = list(dict.fromkeys(self._places()))

    def _places(self) -> Iterator[Path]:
        try:
            configured = yaml.safe_load((self.run / "config.yaml").read_text())["paths"]["artifacts"]
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            configured = "artifacts"
        # A relative path counts from where the program was started, which is one of the folders above the run.
        for place in (configured, "artifacts"):
            yield from (folder / place for folder in self.run.parents if (folder / place).is_dir())

    def of(self, kind: str) -> list[str]:
        """The distinct fingerprints of a kind, in the order in which the run came to them.

        Raises:
            ValueError: it has none.
        """
        found = list(dict.fromkeys(entry["fingerprint"] for entry in self.entries if entry["kind"] == kind))
        if not found:
            raise ValueError(f"the run {str(self.run)!r} has no {kind}; run `difflens task=steer`, or the whole study.")
        return found

    def read(self, kind: str, fingerprint: str) -> Artifact:
        """An artifact, every file of it checked.

        Raises:
            ValueError: it is not there any more.
            ArtifactError: a file of it is missing or changed.
        """
        for place in self.places:
            if (place / kind / fingerprint).is_dir():
                try:
                    return ArtifactStore(place).read(kind, fingerprint)
                except ArtifactError as error:
                    raise ArtifactError(f"{error}; run the same command again to make it anew.") from error
        looked = ", ".join(map(str, self.places)) or "no folder: paths.artifacts of the run is not there"
        raise ValueError(
            f"{kind} {fingerprint} of the run {str(self.run)!r} is not there any more (looked in {looked}); move it back, "
            "or run the same command again."
        )
