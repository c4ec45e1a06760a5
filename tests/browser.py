"""Debian's chromium without a screen, for tests of pages."""

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REMEDY = "no chromium on this machine: apt-get install chromium"
needs_browser = pytest.mark.skipif(BROWSER is None and os.environ.get("CI") != "true", reason=REMEDY)
"""Skips where there is no browser; under CI=true the test fails there instead."""

PATIENCE = 300
"""Seconds after which a browser counts as hanging."""


def command(folder: Path, *arguments: str) -> list[str]:
    """A headless browser, cut off from the network."""
    assert BROWSER is not None, REMEDY
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    offline = [
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--allow-file-access-from-files",
        f"--user-data-dir={folder / 'me'}",
    ]
    return [BROWSER, *quiet, *offline, *arguments]


def browser(folder: Path, *arguments: str) -> str:
    """What a browser prints."""
    asked = command(folder, "--virtual-time-budget=4000", *arguments)
    done = subprocess.run(asked, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Page:
    """An open page under a mouse, driven through the browser's pipes by its DevTools protocol.

    Args:
        hears: file descriptor on which the browser takes commands.
        says: file descriptor on which it answers.
    """

    def __init__(self, hears: int, says: int) -> None:
        self._hears, self._says, self._left, self._number = hears, says, b"", 0
        self._session: str | None = None

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command."""
        self._number += 1
        asked = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            asked["sessionId"] = self._session
        os.write(self._hears, json.dumps(asked).encode() + b"\0")
        while True:
            answer = self._answer()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _answer(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            assert select.select([self._says], [], [], PATIENCE)[0], "the browser says nothing"
            part = os.read(self._says, 1 << 16)
            assert part, "the browser has ended"
            self._left += part
        message, _, self._left = self._left.partition(b"\0")
        return dict(json.loads(message))

    def open(self, address: str) -> None:
        """Go to an address in a new tab, and wait until it is there."""
        target = self.send("Target.createTarget", url=address)["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.until("location.href !== 'about:blank' && document.readyState === 'complete'")

    def ask(self, expression: str) -> Any:
        """What a JavaScript expression, or the promise it makes, gives on the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str) -> Any:
        """The value of an expression as soon as it is true."""
        deadline = time.monotonic() + PATIENCE
        while not (value := self.ask(expression)):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.05)
        return value

    def drag(self, *places: tuple[float, float]) -> None:
        """Press the mouse at the first place, move it over the others, and let it go at the last."""
        for kind, (x, y) in zip(
            ("mousePressed", *["mouseMoved"] * (len(places) - 1), "mouseReleased"), (*places, places[-1]), strict=True
        ):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)


@contextmanager
def page(folder: Path, address: str) -> Iterator[Page]:
    """An address in a browser that is closed after the block."""
    (its_input, hears), (says, its_output) = os.pipe(), os.pipe()
    # The protocol is spoken on file descriptors 3 and 4; a shell puts the pipes there.
    shell = ["bash", "-c", f'exec "$@" 3<&{its_input} 4>&{its_output}', "bash"]
    asked = [*shell, *command(folder, "--remote-debugging-pipe", "--window-size=900,900")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(asked, cwd=folder, pass_fds=(its_input, its_output), **quiet)  # type: ignore[call-overload]
    os.close(its_input)
    os.close(its_output)
    try:
        opened = Page(hears, says)
        opened.open(address)
        yield opened
    finally:
        process.kill()
        process.wait()
        os.close(hears)
        os.close(says)
