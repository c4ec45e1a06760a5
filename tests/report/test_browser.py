"""The sweep's page in a real browser: readable on a phone, whole without scripts, sorted by a click with them."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import browser, needs_browser
from PIL import Image
from sweep_folder import write_job

from difflens.report.sweep import read_jobs
from difflens.report.sweep_page import write_sweep

pytestmark = needs_browser

PHONE = 390
"""Width of a phone's screen in CSS pixels."""

PROBE = """<!doctype html><iframe id="page" {sandbox} width="{width}" height="3000" src="report.html"></iframe>
<pre id="found"></pre>
<script>
document.getElementById("page").addEventListener("load", (event) => {{
  const page = event.target.contentDocument;
  const cells = () => [...page.querySelectorAll("#jobs tbody tr")].map((row) => row.cells[0].textContent);
  const before = cells();
  const heading = page.querySelector("#jobs th");
  heading.click();
  heading.click();
  const pictures = [...page.querySelectorAll("svg")].map((svg) => svg.getBoundingClientRect());
  document.getElementById("found").textContent = JSON.stringify({{
    width: page.documentElement.scrollWidth,
    pictures: pictures.map((box) => [Math.round(box.right), Math.round(box.height)]),
    font: parseFloat(getComputedStyle(page.querySelector("main p")).fontSize),
    before: before,
    after: cells(),
    requests: performance.getEntriesByType("resource").map((entry) => entry.name),
  }});
}});
</script>
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    for number in range(11):
        asked = [f"mitigation.strength={number}", "sae.expansion=8", "attribution.top=12"]
        write_job(folder / str(number), asked, fd=0.3 / (1 + number), fid=3 + 0.1 * number)
    write_job(folder / "11", ["mitigation.strength=11"], fd=None, status="failed", error="sae: " + "a long story " * 30)
    write_sweep(folder, read_jobs(folder))
    return folder


def probe(folder: Path, *, scripts: bool) -> dict[str, Any]:
    """What a phone shows of the page; a sandboxed frame runs no scripts."""
    sandbox = "" if scripts else 'sandbox="allow-same-origin"'
    (folder / "probe.html").write_text(PROBE.format(width=PHONE, sandbox=sandbox))
    page = browser(folder, "--dump-dom", (folder / "probe.html").as_uri())
    found = re.search(r'<pre id="found">(.*?)</pre>', page, re.S)
    assert found and found[1], page
    return dict(json.loads(unescape(found[1])))


@pytest.mark.parametrize("scripts", [True, False])
def test_a_phone_shows_the_whole_page_without_scrolling_sideways(sweep: Path, scripts: bool) -> None:
    found = probe(sweep, scripts=scripts)
    assert found["width"] <= PHONE, "the page is wider than the screen"
    assert len(found["pictures"]) == 5
    assert all(0 < right <= PHONE and height > 100 for right, height in found["pictures"])
    assert found["font"] >= 14
    numbers = [str(number) for number in range(12)]
    assert found["before"] == numbers
    assert found["after"] == (numbers[::-1] if scripts else numbers), "two clicks sort downwards, where scripts run"
    assert [name for name in found["requests"] if not name.endswith("report.html")] == []


def test_the_curves_and_the_text_are_drawn(sweep: Path) -> None:
    browser(sweep, "--window-size=900,4000", "--screenshot=page.png", (sweep / "report.html").as_uri())
    pixels = np.asarray(Image.open(sweep / "page.png").convert("RGB")).astype(int)
    blue = np.abs(pixels - [0x00, 0x72, 0xB2]).sum(-1) < 30
    assert blue.sum() > 200, "the curves are not there"
    assert (pixels.sum(-1) < 300).sum() > 5000, "the text is not there"
