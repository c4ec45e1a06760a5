"""Where training curves go, one logger per run, closed with the run's exit code."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

MODES = ("online", "offline", "disabled")


def csv_logger(folder: Path, *, name: str) -> Logger:
    """Curves as `<name>/metrics.csv` under the run folder."""
    return CSVLogger(folder, name="csv", version=name)


def tensorboard_logger(folder: Path, *, name: str) -> Logger:
    """Curves as TensorBoard events under the run folder.

    Raises:
        ValueError: tensorboard is not installed.
    """
    try:
        return TensorBoardLogger(folder, name="tensorboard", version=name)
    except ModuleNotFoundError as error:
        raise ValueError("logger=tensorboard needs `pip install difflens[tensorboard]`; or take logger=csv.") from error


def wandb_logger(
    folder: Path,
    *,
    name: str,
    project: str = "difflens",
    entity: str | None = None,
    mode: str | None = None,
    tags: Sequence[str] = (),
) -> Logger:
    """Curves for Weights & Biases, kept under the run folder too.

    Curves only: what wandb calls artifacts would lie outside the run folder when offline. The mode is passed to
    `wandb.init`: `WandbLogger(offline=True)` would set it for every later job of the process.

    Raises:
        ValueError: the mode is unknown.
    """
    mode = mode or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    if mode not in MODES:
        raise ValueError(f"logger.mode={mode!r} is not one of {', '.join(MODES)}.")
    return WandbLogger(
        project=project, entity=entity, name=name, save_dir=folder, mode=mode, tags=list(tags), reinit="create_new"
    )


@contextmanager
def logging_to(make: Callable[..., Logger] | None, folder: Path, *, name: str) -> Iterator[Logger | bool]:
    """Lightning's `logger` argument for one training: the logger made by `make(folder, name=name)`, or False for none.

    It is closed however the block ends, with exit code 0 or 1: a wandb run left open would swallow the next job's
    curves.
    """
    if make is None:
        yield False
        return
    logger = make(folder, name=name)
    exit_code = 1
    try:
        yield logger
        exit_code = 0
    finally:
        close(logger, exit_code)


def close(logger: Logger, exit_code: int) -> None:
    """Write out what a logger holds and end it."""
    logger.finalize("success" if exit_code == 0 else "failed")
    if isinstance(logger, WandbLogger):
        logger.experiment.finish(exit_code=exit_code)
