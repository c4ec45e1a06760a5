"""report.html: one file with everything in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from difflens.report.grid import draw_grid
from difflens.report.images import select_pairs
from difflens.report.run_folder import RunFolder, read_run
from difflens.report.sections import render, sections_of, shown_method
from difflens.report.wording import METHOD_NAMES, chance_sentence, result_sentence

TEMPLATES = Path(__file__).parent / "templates"


def write_report(run_folder: Path) -> Path:
    """Write `report.html` and, where there are images, `images/grid.png` into a run folder.

    Returns:
        Path of the page: one file that needs no network, no script and no other file.

    Raises:
        ValueError: there is no such folder.
    """
    run = read_run(Path(run_folder))
    write_grid(run)
    page = run.path / "report.html"
    page.write_text(render_page(run), encoding="utf-8")
    return page


def write_grid(run: RunFolder) -> Path | None:
    """Write `images/grid.png`; None for a run without pairs of readable images."""
    method = shown_method(run)
    pairs = select_pairs(run.path / "images", run.edits, method=method)
    if not pairs:
        return None
    path = run.path / "images" / "grid.png"
    try:
        draw_grid(pairs, method=METHOD_NAMES.get(method, method)).save(path, optimize=True)
    except OSError:
        return None
    return path


def template_of(name: str) -> Template:
    """A template of this package; what it is given is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{name}.html")


def render_page(run: RunFolder) -> str:
    """The page as text; everything that comes from the run is escaped."""

    def template(name: str, content: Mapping[str, Any]) -> str:
        return template_of(name).render(content)

    model = str(run.metrics.get("model", ""))
    return template(
        "report",
        {
            "style": Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
            "result": result_sentence(run.metrics),
            "chance": chance_sentence(run.metrics),
            "model": model,
            "attribute": run.metrics.get("attribute", ""),
            "name": run.path.resolve().name,
            "started": run.status.get("started", ""),
            "drawn": model.startswith("mini"),
            "notes": [*status_notes(run), *run.unreadable],
            "sections": [(section.key, section.title, render(section, run, template)) for section in sections_of(run)],
        },
    )


def status_notes(run: RunFolder) -> list[str]:
    """One line where a run did not end well, for its numbers may be partial."""
    status = run.status.get("status")
    if status == "failed":
        return [f"This run failed: {run.status.get('error', 'no reason was recorded')}"]
    # A report written as a run's last step still finds it running.
    odd = status not in (None, "done", "running")
    return [f"This run's status is {str(status)!r}: numbers may be partial."] if odd else []
