"""What a browser prints of the pages: every word of their tables, and none beyond the edge."""

import re
from html import unescape
from pathlib import Path
from unicodedata import normalize

import pytest
from browser import browser, needs_browser
from program import undisturbed
from pypdf import PageObject, PdfReader
from sweep_folder import write_job

from difflens.report.sweep import read_jobs
from difflens.report.sweep_page import write_sweep

pytestmark = needs_browser


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


@pytest.fixture(scope="module", params=["run", "sweep"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "run":
        return undisturbed().copied(tmp_path_factory.mktemp("run") / "study").latest / "report.html"
    folder = tmp_path_factory.mktemp("sweep")
    for number in range(40):
        asked = [f"mitigation.strength={number}", "sae.expansion=8", "attribution.top=12", f"seed={number}"]
        write_job(folder / str(number), asked, fd=0.3 / (1 + number), fid=3 + 0.1 * number)
    write_job(folder / "40", ["mitigation.strength=40"], fd=None, status="failed", error="sae: " + "a long story " * 30)
    write_sweep(folder, read_jobs(folder))
    return folder / "report.html"


def test_every_word_of_every_table_is_on_the_sheets(page: Path) -> None:
    sheets = printed(page)
    assert 2 <= len(sheets) <= 20
    pieces = [piece for sheet in sheets for piece in starts(sheet)]
    assert all(0 <= x < 0.97 for _, x in pieces), "text runs over the edge of the sheet"
    said = normalize("NFKC", "".join(text for text, _ in pieces)).replace(" ", "")  # fonts join f and i
    lost = [word for word in words(page.read_text()) if word not in said]
    assert len(words(page.read_text())) > 100 and not lost
