"""Errors that end a run with one clear line; `exit_code`: 2 for a mistake in the configuration, 1 for a failed run."""

import signal
import sys
import textwrap
from pathlib import Path
from threading import Event
from types import FrameType

LONGEST = 600
"""Characters of an error's message that are shown; torch lists every weight that does not fit."""

INTERRUPTED = "interrupted; run the same command again to go on"

SECONDS_TO_ASK_AGAIN = 2.0

asked_to_stop = Event()
"""Set once a signal has asked this process to stop."""


class UserError(ValueError):
    """The configuration asks for something impossible; the message says what was wrong and what to do."""

    exit_code = 2


class BuildError(Exception):
    """An object of the configuration could not be built; its cause says why."""

    def __init__(self, key: str, target: str) -> None:
        """The object's dotted key in the configuration, and the class or function that was to make it."""
        super().__init__(key, target)
        self.key, self.target = key, target

    def __str__(self) -> str:
        """Which object, and why."""
        why = f": {one_line(self.__cause__)}" if self.__cause__ is not None else ""
        return f"{self.key} ({self.target}){why}"


class ArtifactError(RuntimeError):
    """An artifact is damaged, cannot be written or does not fit on the disk."""

    exit_code = 1


class ArtifactMismatchError(UserError):
    """An artifact was made for another model, site or grid than the one asked for; it is sound, and nobody removes it."""


class NotReadyError(RuntimeError):
    """Something that the experiment asked for needs is not on this machine."""

    exit_code = 1


class JobFailedError(RuntimeError):
    """A job of a sweep failed; its own error line was printed when that happened, and `folder` is its run folder."""

    def __init__(self, message: str, exit_code: int, folder: Path) -> None:
        """All values are arguments of the exception, so that it survives the way back from a worker process."""
        super().__init__(message, exit_code, folder)
        self.exit_code = exit_code
        self.folder = folder

    def __str__(self) -> str:
        """The job's error line."""
        return str(self.args[0])


def one_line(error: BaseException) -> str:
    """The error's message on one line of bounded length, led by its type unless that adds nothing to a written message."""
    message = textwrap.shorten(str(error), LONGEST, placeholder=" …")
    plain = isinstance(error, ValueError | ArtifactError | NotReadyError | JobFailedError) and message
    return message if plain else f"{type(error).__name__}: {message}".removesuffix(": ")


def interrupt(_: int, __: FrameType | None) -> None:
    """Handle SIGINT, SIGTERM and SIGHUP: the status is written and locks are released on the way out.

    Asked again meanwhile, it goes on tidying up: a second exception would interrupt just that, with a traceback.
    """
    if asked_to_stop.is_set() and sys.exc_info()[0] is not None:
        return
    asked_to_stop.set()
    # A library that swallows the exception (a bare `except` around an import, a destructor) would make this request the
    # last one that is heard; so it asks again for as long as nothing is on its way out.
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_ASK_AGAIN, SECONDS_TO_ASK_AGAIN)
    raise KeyboardInterrupt


def was_interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C or SIGTERM ended the run.

    Lightning turns that into `sys.exit(1)` after its own shutdown; torch, met in the middle of reading a tensor, into a
    ValueError without a cause.
    """
    return isinstance(error, KeyboardInterrupt) or asked_to_stop.is_set()
