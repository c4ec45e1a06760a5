"""The program's entry: whatever happens, it ends with one line and an exit code; nothing heavy is imported before."""

import importlib
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from difflens.store.errors import INTERRUPTED, interrupt, was_interrupted

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def conf_folder() -> Path:
    """The configuration: inside the package when installed from a wheel, next to it in a source checkout."""
    package = Path(__file__).resolve().parent
    return next((folder for folder in (package / "conf", package.parent / "conf") if folder.is_dir()), package / "conf")


def main() -> None:
    """Entry point of `difflens`; exits with 0, with 2 for a mistake in the configuration, else with 1 (130: Ctrl-C)."""
    # Whoever started the program may have asked that a signal be left alone (`nohup`, `&` in a script).
    heard = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
    for number in heard:
        signal.signal(number, interrupt)
    try:
        # Imported once signals are heard, so that Ctrl-C while Hydra loads is told in one line too.
        code, line = importlib.import_module("difflens.cli.job").run_program(conf_folder())
    except BrokenPipeError:
        # `difflens --help | head`: who listened has gone. Python would try once more at its end, and say so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code, line = 128 + signal.SIGPIPE, ""
    except BaseException as error:
        if not was_interrupted(error):
            raise
        code, line = 130, INTERRUPTED
    # The timer that repeats a request to stop, in case a library swallowed it.
    signal.setitimer(signal.ITIMER_REAL, 0)
    # All is tidied up: a signal would interrupt Python's own end, with a traceback.
    for number in heard:
        signal.signal(number, lambda *_: os._exit(code))
    # On a full disk, or behind a pipe that was closed, the error's line is still to be told.
    with suppress(OSError):
        sys.stdout.flush()
    if line:
        print(f"difflens: error: {line}", file=sys.stderr, flush=True)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
