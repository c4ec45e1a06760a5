"""Where a run's curves and figures go besides its folder: one tracker per run, closed with the run's exit code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from difflens.store.artifacts import Artifact


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

    name: str = "run"
    group: str | None = None
    task: str = "pipeline"
    tags: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
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
    return Tracker(CSVLogger(folder, name="csv", version=""))


def tensorboard_tracker(folder: Path, _: RunIdentity) -> Tracker:
    """Numbers as TensorBoard events in the run folder.

    Raises:
        ValueError: tensorboard is not installed.
    """
    try:
        return Tracker(TensorBoardLogger(folder, name="tensorboard", version=""))
    except ModuleNotFoundError as error:
        raise ValueError(
            "logger=tensorboard needs `pip install 'difflens[tensorboard]'`; or take logger=csv."
        ) from error
