"""Pages in a real browser: readable on a phone, whole without scripts, sorted by a click, and printed to the last word."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
from browser import browser, needs_browser
from PIL import Image
from program import undisturbed
from pypdf import PageObject, PdfReader
from sweep_folder import write_job

from difflens.report.sweep import read_jobs
from difflens.report.sweep_page import write_sweep

pytestmark = needs_browser

PHONE = 390
"""Width of a phone's screen in CSS pixels."""

JOBS = 41

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
    for number in range(JOBS - 1):
        asked = [f"mitigation.strength={number}", "sae.expansion=8", "attribution.top=12", f"seed={number}"]
        write_job(folder / str(number), asked, fd=0.3 / (1 + number), fid=3 + 0.1 * number)
    failed = {"status": "failed", "error": "sae: " + "a long story " * 30}
    write_job(folder / str(JOBS - 1), [f"mitigation.strength={JOBS - 1}"], fd=None, **failed)
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
    numbers = [str(number) for number in range(JOBS)]
    assert found["before"] == numbers
    assert found["after"] == (numbers[::-1] if scripts else numbers), "two clicks sort downwards, where scripts run"
    assert [name for name in found["requests"] if not name.endswith("report.html")] == []


def test_the_curves_and_the_text_are_drawn(sweep: Path) -> None:
    browser(sweep, "--window-size=900,4000", "--screenshot=page.png", (sweep / "report.html").as_uri())
    pixels = np.asarray(Image.open(sweep / "page.png").convert("RGB")).astype(int)
    blue = np.abs(pixels - [0x00, 0x72, 0xB2]).sum(-1) < 30
    assert blue.sum() > 200, "the curves are not there"
    assert (pixels.sum(-1) < 300).sum() > 5000, "the text is not there"


def printed(page: Path) -> list[PageObject]:
    """The sheets of a page as the browser prints it, without header and footer."""
    browser(page.parent, "--no-pdf-header-footer", "--print-to-pdf=sheets.pdf", page.resolve().as_uri())
    return list(PdfReader(page.parent / "sheets.pdf").pages)


def words(html: str) -> list[str]:
    """What the tables of a page say, word by word."""
    cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", html, re.S)
    return normalize("NFKC", unescape(re.sub(r"<[^>]+>", " ", " ".join(cells)))).split()


def starts(sheet: PageObject) -> list[tuple[str, float]]:
    """Every piece of text on a sheet and where it starts, as a share of the sheet's width."""
    found: list[tuple[str, float]] = []

    def visit(text: str, user: list[float], tm: list[float], *_: object) -> None:
        x = tm[4] * user[0] + tm[5] * user[2] + user[4]
        found.append((text.strip(), x / float(sheet.mediabox.width)))

    sheet.extract_text(visitor_text=visit)
    return [(text, x) for text, x in found if text]


@pytest.mark.parametrize("shown", ["run", "sweep"])
def test_every_word_of_every_table_is_on_the_sheets(shown: str, sweep: Path, tmp_path: Path) -> None:
    folder = sweep if shown == "sweep" else undisturbed().copied(tmp_path / "study").latest
    page = folder / "report.html"
    sheets = printed(page)
    assert 2 <= len(sheets) <= 20
    pieces = [piece for sheet in sheets for piece in starts(sheet)]
    assert all(0 <= x < 0.97 for _, x in pieces), "text runs over the edge of the sheet"
    said = normalize("NFKC", "".join(text for text, _ in pieces)).replace(" ", "")  # fonts join f and i
    lost = [word for word in words(page.read_text()) if word not in said]
    assert len(words(page.read_text())) > 100 and not lost
