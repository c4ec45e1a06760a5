"""The artifacts that a finished run made or used, found again from its folder alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from difflens.store.artifacts import Artifact, ArtifactStore


class RunArtifacts:
    """The artifacts of a run, found from one to the next by the fingerprints in their specs.

    They are looked for where the run's configuration says, and beside the run, in case both have been moved.

    Args:
        run: the run's folder.

    Raises:
        ValueError: it is no run's folder.
    """

    def __init__(self, run: str | Path) -> None:
        self.run = Path(run).resolve()
        try:
            entries: list[dict[str, Any]] = json.loads((self.run / "manifest.json").read_text())["artifacts"]
        except (OSError, ValueError, KeyError):
            raise ValueError(
                f"{str(run)!r} is no run folder; give one that difflens made, such as 'outputs/latest'."
            ) from None
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
                spec = json.loads((place / kind / fingerprint / "spec.json").read_text())
                found = ArtifactStore(place).find(kind, spec)
                assert found is not None
                return found
        looked = ", ".join(map(str, self.places)) or "no folder: paths.artifacts of the run is not there"
        raise ValueError(
            f"{kind} {fingerprint} of the run {str(self.run)!r} is not there any more (looked in {looked}); move it back, "
            "or run the same command again."
        )
