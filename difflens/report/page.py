"""report.html of a run: one file with everything in it."""

from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from difflens.report.images import draw_grid, select_pairs
from difflens.report.measures import METHOD_NAMES, count, fairness, method_name, number, percent, seconds
from difflens.report.run_folder import Json, RunFolder, baseline, edited_rows, mitigated, read_run
from difflens.report.sections import render, sections_of

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
    """Write `images/grid.png` of the first method; None for a run without pairs of readable images."""
    method = str((mitigated(run.metrics) or {}).get("method", "difflens"))
    pairs = select_pairs(run.path / "images", run.edits, method=method)
    if not pairs:
        return None
    path = run.path / "images" / "grid.png"
    try:
        draw_grid(pairs, method=METHOD_NAMES.get(method, method)).save(path, optimize=True)
    # A picture that cannot be read costs the sheet, and not the report.
    except OSError:
        return None
    return path


@lru_cache
def template_of(name: str) -> Template:
    """A template of this package; what it is given is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        # Classes, prompts and errors are anybody's text.
        autoescape=True,
        # A name that a template gets wrong is an error here, and would be an empty place otherwise.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "seconds": seconds}
    return environment.get_template(f"{name}.html")


def read_template(name: str) -> Markup:
    """A style sheet or a script of this package, which is not escaped."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def render_page(run: RunFolder) -> str:
    """The page as text; everything that comes from the run is escaped."""
    model, body = str(run.metrics.get("model", "")), template_of("sections").render
    return template_of("report").render(
        style=read_template("style.css"),
        result=result_sentence(run.metrics),
        chance=chance_sentence(run.metrics),
        model=model,
        attribute=run.metrics.get("attribute", ""),
        name=run.path.resolve().name,
        started=run.status.get("started", ""),
        drawn=model.startswith("mini"),
        notes=[*status_notes(run), *run.unreadable],
        sections=[(section.key, section.title, render(section, run, body)) for section in sections_of(run)],
    )


def status_notes(run: RunFolder) -> list[str]:
    """One line where a run did not end well, for its numbers may be partial."""
    status = run.status.get("status")
    if status == "failed":
        return [f"This run failed: {run.status.get('error', 'no reason was recorded')}"]
    # A report written as a run's last step still finds it running.
    odd = status not in (None, "done", "running")
    return [f"This run's status is {str(status)!r}: numbers may be partial."] if odd else []


def result_sentence(metrics: Json) -> str:
    """The run's result in one sentence: that of its first method."""
    rows = [row for row in (baseline(metrics), mitigated(metrics)) if row is not None]
    if not rows:
        return "This run has no result yet."
    fd = " → ".join(number(fairness(row, "fd"), 3) for row in rows)
    methods, prompts = len(edited_rows(metrics)), rows[0].get("prompts") or {}
    by = f" by {method_name(rows[-1])}, the first of {methods} methods," if methods > 1 else ""
    mean = f", the mean of {count(len(prompts), 'prompt')}," if prompts else ""
    n, edited = metrics.get("n", rows[0].get("n")), (mitigated(metrics) or {}).get("edited")
    over = f" over {count(n, 'image')}" if isinstance(n, int) else ""
    changed = (
        f"; {count(edited, 'image')} {'was' if edited == 1 else 'were'} changed" if isinstance(edited, int) else ""
    )
    return f"{metrics.get('attribute', 'attribute')}: FD {fd}{by}{mean}{over}{changed}."


def chance_sentence(metrics: Json) -> str:
    """How the result compares with the FD that a perfectly fair sampler shows by chance; empty if not measured."""
    after = mitigated(metrics) or {}
    # Hard FD, for the chance level is that of counted images.
    fd, chance = fairness(after, "fd_hard"), fairness(after, "fd_chance")
    if fd is None or chance is None:
        return ""
    verdict = "at or below" if fd <= chance else "above"
    return (
        f"Counting each image as its most likely class, {method_name(after)} has FD {number(fd, 3)}, {verdict} the "
        f"{number(chance, 3)} that a perfectly fair sampler shows by chance with as many images."
    )
