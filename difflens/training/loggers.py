"""Where a run's curves and figures go besides its folder: one tracker per run, closed with the run's exit code."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from difflens.store.artifacts import Artifact
from difflens.store.errors import one_line


@dataclass(frozen=True)
class RunIdentity:
    """What a tracking service is told of a run.

    Attributes:
        name: of the run.
        group: the sweep it is a job of, None for a run of its own.
        task: what it does.
        tags: model, attribute and method.
        config: the resolved configuration.
        id: the same for every attempt at a job of a sweep; None for a new one.
    """

    name: str
    group: str | None
    task: str
    tags: Sequence[str]
    config: Mapping[str, Any]
    id: str | None = None


class Tracker:
    """Numbers for a Lightning logger, or for nobody (False); it keeps no histograms, tables, pictures and artifacts."""

    def __init__(self, logger: Logger | bool = False) -> None:
        self.logger = logger

    def scalars(self, values: Mapping[str, float | None], *, step: int | None = None) -> None:
        """The run's figures; what was not measured is left out."""
        known = {name: float(value) for name, value in values.items() if value is not None}
        if isinstance(self.logger, Logger) and known:
            self.logger.log_metrics(known, step)

    def curve(self, name: str, values: Sequence[float | None]) -> None:
        """A figure at every denoising step."""
        for step, value in enumerate(values):
            self.scalars({name: value}, step=step)

    def histogram(self, name: str, counts: Sequence[int], edges: Sequence[float]) -> None:
        """Numbers of things per bin."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table; a cell that is the path of an image shows it."""

    def artifacts(self, artifacts: Sequence[tuple[Artifact, bool]]) -> None:
        """The artifacts of the run in the order they were needed, each with whether it was reused."""

    def close(self, exit_code: int) -> None:
        """Write out what is held, and end."""
        if isinstance(self.logger, Logger):
            self.logger.finalize("success" if exit_code == 0 else "failed")


def csv_tracker(folder: Path, _: RunIdentity) -> Tracker:
    """Numbers as `csv/metrics.csv` in the run folder."""
    # No folder `version_0`: a run folder is one run's.
    return Tracker(CSVLogger(folder, name="csv", version=""))


def tensorboard_tracker(folder: Path, _: RunIdentity) -> Tracker:
    """Numbers as TensorBoard events in the run folder (ValueError: tensorboard is not installed)."""
    try:
        return Tracker(TensorBoardLogger(folder, name="tensorboard", version=""))
    except ModuleNotFoundError as error:
        raise ValueError(
            "logger=tensorboard needs `pip install 'difflens[tensorboard]'`; or take logger=csv."
        ) from error


STEP = "denoising_step"
SECONDS_TO_CONNECT = 20.0
MODES = ("online", "offline", "disabled")

log = logging.getLogger(__name__)


class WandbTracker(Tracker):
    """A run of Weights & Biases, and what ends with it; without `images` tables hold the paths of pictures."""

    def __init__(self, run: Any, *, images: bool, held: ExitStack) -> None:
        # With a run given: the logger's own start writes its mode into the environment, where the next job finds it.
        super().__init__(WandbLogger(experiment=run))
        self.run, self.images, self.held = run, images, held

    def curve(self, name: str, values: Sequence[float | None]) -> None:
        """See `Tracker.curve`; the axis is the denoising step."""
        # An axis of its own: wandb's steps only grow, and each curve's denoising steps begin at 0.
        self.run.define_metric(name, step_metric=STEP)
        for step, value in enumerate(values):
            if value is not None:
                self.run.log({name: float(value), STEP: step})

    def histogram(self, name: str, counts: Sequence[int], edges: Sequence[float]) -> None:
        """See `Tracker.histogram`."""
        # Imported by need: it takes seconds, and the other trackers do without.
        import wandb

        self.run.log({name: wandb.Histogram(np_histogram=(np.asarray(counts), np.asarray(edges)))})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See `Tracker.table`."""
        import wandb

        def shown(cell: Any) -> Any:
            picture = isinstance(cell, Path) and self.images and cell.is_file()
            return wandb.Image(str(cell)) if picture else str(cell) if isinstance(cell, Path) else cell

        self.run.log({name: wandb.Table(columns=list(columns), data=[[shown(cell) for cell in row] for row in rows])})

    def artifacts(self, artifacts: Sequence[tuple[Artifact, bool]]) -> None:
        """References to the local artifacts, which are not uploaded, with what each was made from.

        Online, a reused one is an input of this run and a made one an output; offline, wandb knows outputs only.
        """
        import wandb

        # Each once, however many stages asked for it.
        last = {artifact.fingerprint: (artifact, reused) for artifact, reused in artifacts}
        for artifact, reused in last.values():
            words = json.dumps(artifact.spec)
            # Specs name what they are made from by its fingerprint.
            others = [other for other, _ in last.values() if f'"{other.fingerprint}"' in words]
            about = {"spec": artifact.spec, "files": dict(artifact.files), "reused": reused}
            about["made_from"] = [f"{other.kind}-{other.fingerprint}" for other in others]
            entry = wandb.Artifact(f"{artifact.kind}-{artifact.fingerprint}", artifact.kind, metadata=about)
            # Artifacts have hashes of their own: wandb need not read gigabytes once more.
            entry.add_reference(artifact.folder.resolve().as_uri(), checksum=False)
            is_input = reused and not self.run.settings._offline
            (self.run.use_artifact if is_input else self.run.log_artifact)(entry)

    def close(self, exit_code: int) -> None:
        """End the run with its exit code: left open, it would swallow the next job's curves."""
        # The environment is put back even if wandb cannot end the run.
        with self.held:
            self.run.finish(exit_code=exit_code)


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

    `mode` is `online`, `offline` or `disabled`, and None for online where WANDB_API_KEY is set and offline elsewhere; an
    `entity` of None is the key's own; `images` are uploaded.

    Raises:
        ValueError: the mode is unknown, or wandb is not installed.
    """
    mode = mode or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    if mode not in MODES:
        raise ValueError(f"logger.mode={mode!r} is not one of {', '.join(MODES)}.")
    if mode == "disabled":
        return Tracker()
    about: dict[str, Any] = {
        "id": identity.id,
        "name": identity.name,
        "group": identity.group,
        "job_type": identity.task,
        "tags": [*identity.tags, *tags],
        "config": dict(identity.config),
        "dir": str(folder),
        "project": project,
        "entity": entity,
    }
    with ExitStack() as held:
        held.enter_context(_surroundings(folder.resolve() / "wandb"))
        run = _start(mode, about, folder)
        # Taken out of the block: wandb reads this environment until the run is closed.
        return WandbTracker(run, images=images, held=held.pop_all())


@contextmanager
def _surroundings(folder: Path) -> Iterator[None]:
    """The environment that wandb reads while a run is open, and nothing after it."""
    folder.mkdir(parents=True, exist_ok=True)
    # What wandb stages would lie in the home folder otherwise; its reports of errors would leave the machine when offline.
    reporting = os.environ.get("WANDB_ERROR_REPORTING", "false")
    wanted = {"WANDB_DATA_DIR": str(folder), "WANDB_ARTIFACT_DIR": str(folder), "WANDB_ERROR_REPORTING": reporting}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


def _start(mode: str, about: Mapping[str, Any], folder: Path) -> Any:
    """A run of wandb's in this mode, or else offline; it never becomes the process's global one."""
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise ValueError("logger=wandb needs `pip install wandb`; or take logger=csv.") from error
    quiet: dict[str, Any] = {"silent": True, "console": "off"}
    if mode == "online":
        # A job that is done again goes on with the run of its earlier attempt; offline wandb knows of none.
        asked = {**about, "resume": "allow" if about["id"] else None}
        settings = wandb.Settings(**quiet, init_timeout=SECONDS_TO_CONNECT)
        try:
            # `create_new`: the next job of a sweep would otherwise go on writing into this run.
            return wandb.init(mode="online", reinit="create_new", settings=settings, **asked)
        except (wandb.errors.Error, OSError) as error:
            # A missing network or a bad key must not cost the study.
            why = one_line(error).rstrip(".")
            log.info("W&B: %s. This run is kept offline; send it later: wandb sync %s/wandb/offline-run-*", why, folder)
    return wandb.init(mode="offline", reinit="create_new", settings=wandb.Settings(**quiet), **about)
