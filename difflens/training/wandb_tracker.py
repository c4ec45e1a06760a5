"""Weights & Biases: one run per job with its curves, tables, pictures, and its artifacts' lineage."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import WandbLogger

from difflens.store.artifacts import Artifact
from difflens.store.errors import one_line
from difflens.training.loggers import RunIdentity, Tracker

STEP = "denoising_step"
SECONDS_TO_CONNECT = 20.0
MODES = ("online", "offline", "disabled")
"""How the service may be used."""

log = logging.getLogger(__name__)


class WandbTracker(Tracker):
    """A run of Weights & Biases.

    Args:
        run: what `wandb.init` gave.
        images: whether pictures are uploaded; without them tables hold their paths.
    """

    def __init__(self, run: Any, *, images: bool) -> None:
        super().__init__(WandbLogger(experiment=run))
        self.run, self.images = run, images

    def curve(self, name: str, values: Sequence[float | None]) -> None:
        """See `Tracker.curve`; the axis is the denoising step."""
        self.run.define_metric(name, step_metric=STEP)
        for step, value in enumerate(values):
            if value is not None:
                self.run.log({name: float(value), STEP: step})

    def histogram(self, name: str, counts: Sequence[int], edges: Sequence[float]) -> None:
        """See `Tracker.histogram`."""
        import wandb

        self.run.log({name: wandb.Histogram(np_histogram=(np.asarray(counts), np.asarray(edges)))})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See `Tracker.table`."""
        import wandb

        shown = [[self._cell(cell) for cell in row] for row in rows]
        self.run.log({name: wandb.Table(columns=list(columns), data=shown)})

    def _cell(self, cell: Any) -> Any:
        import wandb

        if not isinstance(cell, Path):
            return cell
        return wandb.Image(str(cell)) if self.images and cell.is_file() else str(cell)

    def artifacts(self, artifacts: Sequence[tuple[Artifact, bool]]) -> None:
        """References to the local artifacts, which are not uploaded, with what each was made from.

        Online, a reused one is an input of this run and a made one an output; offline, wandb knows outputs only.
        """
        import wandb

        for artifact, reused in {artifact.fingerprint: (artifact, reused) for artifact, reused in artifacts}.values():
            made_from = parents(artifact, [other for other, _ in artifacts])
            about = {"spec": artifact.spec, "files": dict(artifact.files), "made_from": made_from, "reused": reused}
            entry = wandb.Artifact(shown_name(artifact), artifact.kind, metadata=about)
            entry.add_reference(artifact.folder.resolve().as_uri(), checksum=False)
            if reused and not self.run.settings._offline:
                self.run.use_artifact(entry)
            else:
                self.run.log_artifact(entry)

    def close(self, exit_code: int) -> None:
        """End the run with its exit code: left open, it would swallow the next job's curves."""
        self.run.finish(exit_code=exit_code)


def shown_name(artifact: Artifact) -> str:
    """An artifact's name in Weights & Biases."""
    return f"{artifact.kind}-{artifact.fingerprint}"


def parents(artifact: Artifact, others: Sequence[Artifact]) -> list[str]:
    """The names of the artifacts whose fingerprints stand in an artifact's spec."""

    def words(node: Any) -> set[str]:
        if isinstance(node, Mapping):
            return set().union(*(words(value) for value in node.values()))
        if isinstance(node, list | tuple):
            return set().union(*(words(value) for value in node))
        return {node} if isinstance(node, str) else set()

    named = words(artifact.spec)
    return list(dict.fromkeys(shown_name(other) for other in others if other.fingerprint in named))


def wandb_tracker(
    folder: Path,
    identity: RunIdentity,
    *,
    project: str = "difflens",
    entity: str | None = None,
    mode: str | None = None,
    tags: Sequence[str] = (),
    images: bool = True,
) -> Tracker:
    """A run of Weights & Biases, kept under the run folder too; offline where there is no key or no network.

    Args:
        folder: the run folder.
        identity: group, job type, tags and configuration.
        project: of Weights & Biases.
        entity: user or team; None for the key's own.
        mode: `online`, `offline` or `disabled`; None for online where WANDB_API_KEY is set and offline elsewhere.
        tags: further tags.
        images: whether pictures are uploaded.

    Raises:
        ValueError: the mode is unknown, or wandb is not installed.
    """
    mode = mode or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    if mode not in MODES:
        raise ValueError(f"logger.mode={mode!r} is not one of {', '.join(MODES)}.")
    if mode == "disabled":
        return Tracker()
    # Its reports of errors and usage would leave the machine in offline mode too.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise ValueError("logger=wandb needs `pip install wandb`; or take logger=csv.") from error
    described = _described(folder, identity, tags) | {"project": project, "entity": entity}
    try:
        run = _start(mode, described)
    except (wandb.errors.Error, OSError) as error:
        if mode == "offline":
            raise
        why = one_line(error).rstrip(".")
        log.info("W&B: %s. This run is kept offline; send it later: wandb sync %s/wandb/offline-run-*", why, folder)
        run = _start("offline", described)
    return WandbTracker(run, images=images)


def _described(folder: Path, identity: RunIdentity, tags: Sequence[str]) -> dict[str, Any]:
    """The arguments of `wandb.init`; prepares the folder they name."""
    # What wandb stages would lie in the home folder otherwise.
    os.environ["WANDB_DATA_DIR"] = os.environ["WANDB_ARTIFACT_DIR"] = str(folder.resolve() / "wandb")
    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    return {
        "id": identity.id,
        "name": identity.name,
        "group": identity.group,
        "job_type": identity.task,
        "tags": [*identity.tags, *tags],
        "config": dict(identity.config),
        "dir": str(folder),
    }


def _start(mode: Any, described: Mapping[str, Any]) -> Any:
    """A run of wandb's in this mode; it never becomes the process's global one."""
    import wandb

    settings = wandb.Settings(silent=True, console="off")
    if mode == "online":
        settings.init_timeout = SECONDS_TO_CONNECT
        # A job that is done again goes on with the run of its earlier attempt; offline wandb knows of none.
        described = {**described, "resume": "allow" if described["id"] else None}
    return wandb.init(mode=mode, reinit="create_new", settings=settings, **described)
