"""How far a stage is: a bar with the stage's name where somebody looks on, a plain line now and then where nobody does."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds before the first plain line of a stage, and twice as many before each further one: a day takes a dozen."""


class Progressing:
    """The display of a stage, in a `with` block; on further ranks, whose output goes nowhere, it shows nothing."""

    def __init__(self, name: str, total: int | None) -> None:
        self.name, self.total, self.done = name, total, 0
        self._next, self._pause = time.monotonic() + PATIENCE, PATIENCE
        self._bar: Progress | None = None
        # A bar in a file or a pipe would be thousands of lines that overwrite nothing.
        if sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            # It goes away when it is done: what stays is the line that tells the stage's time.
            self._bar = Progress(*columns, console=Console(file=sys.stdout), transient=True)
            self._task = self._bar.add_task(name, total=total)
            self._bar.start()

    def advance(self, parts: int = 1, *, note: str = "") -> None:
        """So many more parts are done; a note stands behind the name."""
        self.done += parts
        name = f"{self.name} {note}".strip()
        if self._bar is not None:
            self._bar.update(self._task, advance=parts, description=name)
        elif time.monotonic() >= self._next:
            self._pause *= 2
            self._next = time.monotonic() + self._pause
            # Python holds back what is piped: unflushed, all lines would come at the end.
            print(f"{name}: {self.done}" + (f" of {self.total}" if self.total else ""), flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> "Progressing":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def progress(parts: Iterable[T], name: str) -> Iterator[T]:
    """The parts of some work, while it is shown how many of them are done."""
    counted: Any = parts
    with Progressing(name, len(counted) if isinstance(parts, Sized) else None) as display:
        for part in parts:
            # The part counts once the caller asks for the next one, for only then is its work done.
            yield part
            display.advance()
