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


def newest_having(path: Path, has: str | Callable[[Path], bool]) -> Path:
    """The folder itself; of the links `latest` and `latest_sweep` the newest run, or sweep, that has what is asked for.

    `has` tells whether a folder has it, or is the pattern of a file in it. Every command moves those links, also one that
    leaves nothing to be read. Which folder is taken instead is said.
    """
    fits = (lambda folder: any(folder.glob(has))) if isinstance(has, str) else has
    if not path.is_symlink() or fits(path):
        return path
    kinds = ("sweeps/*",) if path.name == "latest_sweep" else ("runs/*/*", "sweeps/*/*")
    folders = (folder for kind in kinds for folder in path.parent.glob(kind) if folder.is_dir())
    found = next((folder for folder in sorted(folders, key=_begun, reverse=True) if fits(folder)), None)
    if found is None:
        return path
    # A warning, since who calls from Python sees nothing less.
    log.warning("%s (%s) has nothing of this to read; taken is the newest that has: %s", path, path.resolve(), found)
    return found


def _begun(folder: Path) -> float:
    """When a run, or the last job of a sweep, began; 0 for a folder that is neither."""
    # The configuration is written once, at the start; a folder's own time changes with every file in it.
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

    They are looked for where the run's configuration says, and beside the run, in case both have been moved. Of
    `outputs/latest` the newest run is taken that has artifacts of `kind`.

    Raises:
        ValueError: it is no run's folder.
    """

    def __init__(self, run: str | Path, kind: str) -> None:

        def has(folder: Path) -> bool:
            return any(entry["kind"] == kind for entry in recorded(folder) or ())

        self.run = newest_having(Path(run), has).resolve()
        entries = recorded(self.run)
        if entries is None:
            raise ValueError(f"{str(run)!r} is no run folder; give one that difflens made, such as 'outputs/latest'.")
        self.entries = entries
        self.places = list(dict.fromkeys(self._places()))

    def _places(self) -> Iterator[Path]:
        try:
            # The run may come from somebody else: plain YAML builds no objects.
            configured = yaml.safe_load((self.run / "config.yaml").read_text())["paths"]["artifacts"]
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            configured = "artifacts"
        # A relative path counts from where the program was started, which is one of the folders above the run.
        for place in (configured, "artifacts"):
            yield from (folder / place for folder in self.run.parents if (folder / place).is_dir())

    def of(self, kind: str) -> list[str]:
        """The distinct fingerprints of a kind, in the order in which the run came to them (ValueError: it has none)."""
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
