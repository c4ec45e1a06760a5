"""The feature explorer: a real server on the tiny study, asked as a browser asks it, and by a browser."""

import io
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import pytest
from browser import Page, needs_browser, page
from PIL import Image
from program import Program, undisturbed

from difflens.tasks.explore import is_own_host


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program: Program = undisturbed().copied(tmp_path_factory.mktemp("explore") / "study")
    process = program.start("task=explore", "task.port=0", "task.images=2")
    deadline = time.monotonic() + 300
    while not (program.latest / "explorer.json").exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    yield program.json("explorer.json")["url"]
    ended = program.stop(process, signal.SIGINT, when=lambda: True)
    assert ended.code == 130


def picture(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(urlopen(url, timeout=300).read())).convert("RGB")).astype(int)


def test_raising_a_latent_changes_the_images_and_nothing_else_does(address: str) -> None:
    latent = undisturbed().json("report.json")["features"][0]["latent"]
    plain, raised = (picture(f"{address}images.png?latent={latent}&strength={strength}") for strength in (0, 6))
    originals = [undisturbed().latest / "images" / "original" / f"{image_id}.png" for image_id in range(2)]
    expected = np.concatenate([np.asarray(Image.open(path)).astype(int) for path in originals], 1)
    assert plain.shape == expected.shape == (32, 64, 3)
    # Another batch size: a pixel may differ by rounding.
    assert np.abs(plain - expected).mean() < 1 and np.abs(raised - plain).mean() > 0.2
    for wrong in (
        "nothing",
        "images.png?latent=999999&strength=1",
        "images.png?latent=x&strength=1",
        "strip.png?latent=0",
        f"images.png?latent={latent}&strength=nan",
        f"images.png?latent={latent}&strength=-inf",
    ):
        with pytest.raises(HTTPError, match="404"):
            urlopen(address + wrong, timeout=60)
    # A page of somebody else, under a name that leads here.
    with pytest.raises(HTTPError, match="403"):
        urlopen(Request(address, headers={"Host": "example.org"}), timeout=60)


def test_idle_connections_keep_nobody_out(address: str) -> None:
    where = urlsplit(address)
    with ExitStack() as idle:
        for _ in range(200):
            idle.enter_context(socket.create_connection((where.hostname, where.port), timeout=60))
        assert urlopen(address, timeout=60).status == 200


@pytest.mark.parametrize(
    "named", [None, "", "example.org", "example.org:8765", "127.0.0.1:80", "127.0.0.1:x", "10.0.0.1"]
)
def test_no_name_but_its_own_leads_to_the_explorer(named: str | None) -> None:
    assert not is_own_host(named, ("127.0.0.1", 8765))
    assert all(is_own_host(own, ("127.0.0.1", 8765)) for own in ("localhost:8765", "127.0.0.1:8765", "[::1]:8765"))
    # Open to all addresses, it has names that it cannot know.
    assert is_own_host("example.org:8765", ("0.0.0.0", 8765)) and not is_own_host("", ("0.0.0.0", 8765))


SETTLED = """
(() => {
  const images = document.getElementById("images"), strength = document.getElementById("strength").value;
  return images.complete && images.naturalWidth > 0 && new URL(images.src).searchParams.get("strength") === strength
    && /^\\d+\\.\\d s$/.test(document.getElementById("took").textContent);
})()
"""
"""Whether the images of the slider's place are there, and no others are being made."""

SHOWN = """
(() => {
  const images = document.getElementById("images"), canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [images.naturalWidth, images.naturalHeight];
  const drawn = canvas.getContext("2d");
  drawn.drawImage(images, 0, 0);
  return [...drawn.getImageData(0, 0, canvas.width, canvas.height).data];
})()
"""
"""The pixels that the page shows, as RGBA bytes."""


def dragged(opened: Page, *, to: float) -> tuple[float, np.ndarray]:
    """The strength and the pixels after the slider's knob was dragged to a share of its way."""
    opened.until(SETTLED)
    box = opened.ask("(({x, y, width, height}) => [x, y, width, height])(strength.getBoundingClientRect())")
    x, y, width, height = box
    now = float(opened.ask("(strength.value - strength.min) / (strength.max - strength.min)"))
    knob = height  # at either end its middle is half its width away from the slider's edge
    places = [x + knob / 2 + share * (width - knob) for share in (now, (now + to) / 2, to)]
    opened.drag(*((place, y + height / 2) for place in places))
    opened.until(SETTLED)
    return float(opened.ask("strength.value")), np.array(opened.ask(SHOWN))


@needs_browser
def test_a_browser_shows_the_cards_and_dragging_the_slider_there_and_back_restores_the_images(
    address: str, tmp_path: Path
) -> None:
    with page(tmp_path, address) as opened:
        shown = opened.ask("[...document.querySelectorAll('[data-latent]')].map(card => Number(card.dataset.latent))")
        assert shown == [card["latent"] for card in undisturbed().json("report.json")["features"]]
        middle, plain = dragged(opened, to=0.5)
        right, raised = dragged(opened, to=1.0)
        left, lowered = dragged(opened, to=0.0)
        again, restored = dragged(opened, to=0.5)
        assert opened.ask("shown.textContent") == opened.ask("strength.value")
    assert middle == again == 0 and left == -right < 0
    assert np.abs(raised - plain).mean() > 0.1 and np.abs(raised - lowered).mean() > 0.1
    assert np.array_equal(restored, plain)
