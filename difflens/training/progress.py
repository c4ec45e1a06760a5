"""How far a stage is: a bar with the stage's name where somebody looks on, a plain line now and then where nobody does."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

EVERY = 10.0
"""Seconds between two plain lines; a stage that is done sooner says nothing."""


class Stage:
    """The display of one stage.

    Args:
        name: what the stage is called.
        total: number of parts; None if nobody knows.
    """

    def __init__(self, name: str, total: int | None) -> None:
        self.name, self.total, self.done = name, total, 0
        self._said = time.monotonic()
        self._bar: Progress | None = None
        if sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(file=sys.stdout), transient=True)
            self._task = self._bar.add_task(name, total=total)
            self._bar.start()

    def advance(self, parts: int = 1) -> None:
        """So many more parts are done."""
        self.done += parts
        if self._bar is not None:
            self._bar.advance(self._task, parts)
        elif time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            print(f"{self.name}: {self.done}" + (f" of {self.total}" if self.total else ""), flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


def progress(work: Iterable[T] | int, name: str) -> Iterator[T | int]:
    """The parts of some work, or the numbers below one, while it is shown how many are done."""
    parts: Iterable[Any] = range(work) if isinstance(work, int) else work
    stage = Stage(name, len(parts) if isinstance(parts, Sized) else None)
    try:
        for part in parts:
            yield part
            stage.advance()
    finally:
        stage.close()


class StageProgress(ProgressBar):
    """The same for a trainer; as a callback it takes the place of Lightning's own bars.

    Args:
        name: what the stage is called.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._enabled = True
        self._stage: Stage | None = None

    def disable(self) -> None:
        """Lightning asks for silence on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Speak again."""
        self._enabled = True

    def _open(self, total: float) -> None:
        if self._enabled:
            self._stage = Stage(self.name, int(total) if 0 < total < float("inf") else None)

    def _close(self) -> None:
        if self._stage is not None:
            self._stage.close()
            self._stage = None

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Count updates."""
        self._open(trainer.estimated_stepping_batches)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Updates, not batches: a resumed training goes on where it was."""
        if self._stage is not None:
            self._stage.advance(trainer.global_step - self._stage.done)

    def on_train_end(self, *_: Any) -> None:
        """Take the display away."""
        self._close()

    def on_predict_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Count batches."""
        self._open(sum(trainer.num_predict_batches))

    def on_predict_batch_end(self, *_: Any) -> None:
        """One more batch."""
        if self._stage is not None:
            self._stage.advance()

    def on_predict_end(self, *_: Any) -> None:
        """Take the display away."""
        self._close()

    def on_exception(self, *_: Any) -> None:
        """Leave the terminal as it was."""
        self._close()
