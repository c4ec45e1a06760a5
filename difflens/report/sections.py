"""The report's sections: what each one shows of a run, and what to run where there is nothing to show."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from markupsafe import Markup

from difflens.report import inside, origin
from difflens.report.folders import folders
from difflens.report.images import embed, images_by_id, select_pairs
from difflens.report.outcome_figures import draw_dose, draw_leakage, draw_shares
from difflens.report.published import beside_published
from difflens.report.run_folder import Json, RunFolder
from difflens.report.svg import inline_svg
from difflens.report.tables import protocol_sentence, summary_measures
from difflens.report.wording import METHOD_NAMES, method_name, mitigated, number, percent, points, rows_of

Content = Mapping[str, Any]


class Section(NamedTuple):
    """One section of the page.

    Attributes:
        key: its id, and the name of its template.
        title: its heading.
        build: what its template shows of a run; None if the run lacks it.
        source: where its data are kept, and the task that writes them.
    """

    key: str
    title: str
    build: Callable[[RunFolder], Content | None]
    source: tuple[str, str]


def classes_of(run: RunFolder) -> Sequence[str]:
    """The attribute's classes in order."""
    return list(run.metrics.get("classes") or run.metrics.get("target") or {})


def shown_method(run: RunFolder) -> str:
    """The method whose images and leakage are shown."""
    return str((mitigated(run.metrics) or {}).get("method", "difflens"))


def grid(run: RunFolder) -> Content | None:
    """Pairs of the same seed, the edited ones first."""
    method, images = shown_method(run), run.path / "images"
    pairs = select_pairs(images, run.edits, method=method)
    shown = [(pair, embed(pair.before, longest=128), embed(pair.after, longest=128)) for pair in pairs]
    shown = [pair for pair in shown if pair[1] and pair[2]]
    if not shown:
        return None
    return {
        "pairs": shown,
        "edited": sum(pair.edit is not None for pair, _, _ in shown),
        "edited_in_all": len(run.edits),
        "images": len(images_by_id(images / "original").keys() & images_by_id(images / method).keys()),
        "method": METHOD_NAMES.get(method, method),
    }


def shares(run: RunFolder) -> Content | None:
    """Shares per class by every method, of all images and of every prompt's."""
    rows, classes = [row for row in rows_of(run.metrics) if row.get("shares")], classes_of(run)
    if not rows or not classes:
        return None
    found = {"": rows}
    for prompt in rows[0].get("prompts") or {}:
        found[prompt] = [{**row["prompts"][prompt], "method": row["method"]} for row in rows]
    size = (5.2, 0.9 + len(classes) * (0.35 + 0.16 * len(rows)))
    figures = {}
    for index, (prompt, of_it) in enumerate(found.items()):
        target = of_it[0].get("target") or run.metrics.get("target") or {}
        draw = partial(draw_shares, rows=of_it, classes=classes, target=target)
        label = f"share of each class by method{prompt and f': {prompt}'}"
        figures[prompt] = inline_svg(draw, size, name=f"shares-{index}", label=label)
    return {"figures": figures}


def summary(run: RunFolder) -> Content | None:
    """The table of all methods, and that of prompts kept apart."""
    found = _summary(run.metrics)
    return found and {**found, "unseen": _summary(run.unseen)}


def _summary(metrics: Json) -> Content | None:
    rows = rows_of(metrics)
    if not rows:
        return None
    return {
        "methods": [method_name(row) for row in rows],
        "measures": summary_measures(metrics),
        "protocol": protocol_sentence(metrics),
    }


def dose(run: RunFolder) -> Content | None:
    """Dose-response curves and the strength chosen per class."""
    data, classes = run.report.get("dose"), classes_of(run)
    if not data or not data.get("points") or not classes:
        return None
    target = run.metrics.get("target") or {}
    draw = partial(draw_dose, dose=data, classes=classes, target=target)
    met = data.get("met") or {}
    chosen = [
        (
            name,
            number(value, 3),
            verdict(met.get(name), [point.get("success", {}).get(name) for point in data["points"]]),
        )
        for name, value in (data.get("chosen") or {}).items()
    ]
    figure = inline_svg(draw, (7.2, 3.1), name="dose", label="success and shares against the strength of the edit")
    return {"figure": figure, "chosen": chosen, "neutral": data.get("neutral")}


def verdict(met: bool | None, success: Sequence[float | None]) -> str:
    """What the search for a strength found for a class, given the share of pushed images that showed it at each one tried."""
    if met is None:
        return ""
    known = [share for share in success if share is not None]
    if not known:
        return "no image had to be pushed"
    if met:
        return "the share asked for was reached"
    return f"the share asked for was not reached; of the images pushed towards it at most {percent(max(known))} show it"


def leakage(run: RunFolder) -> Content | None:
    """What the mitigation did to all other attributes."""
    attributes = (mitigated(run.metrics) or {}).get("leakage")
    if not attributes:
        return None
    size = (5.2, 1.1 + 0.5 * len(attributes))
    figure = inline_svg(partial(draw_leakage, leakage=attributes), size, name="leakage", label="leakage per attribute")
    shifts = [(name, *_leakage_cells(entry)) for name, entry in attributes.items()]
    return {"figure": figure, "shifts": shifts, "attribute": run.metrics.get("attribute", "the attribute")}


def _leakage_cells(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    shift = ", ".join(f"{name} {points(change)}" for name, change in (entry.get("shift") or {}).items())
    return percent(entry.get("flip_rate")), percent(entry.get("flip_rate_edited")), shift


def features(run: RunFolder) -> Content | None:
    """Cards of the strongest latents."""
    return inside.features(run, classes_of(run))


SECTIONS = (
    Section("folders", "Folders", folders, ("folders in metrics.json", "evaluate")),
    Section("grid", "Before and after", grid, ("images/original and images/difflens", "steer")),
    Section("shares", "Shares", shares, ("metrics.json", "steer")),
    Section("summary", "Summary", summary, ("metrics.json", "steer")),
    Section("compare", "Published and measured", beside_published, ("published in metrics.json", "report")),
    Section("dose", "Dose and response", dose, ("dose in report.json", "calibrate")),
    Section("leakage", "Leakage into other attributes", leakage, ("leakage in metrics.json", "steer")),
    Section("features", "Top features", features, ("features in report.json", "attribution")),
    Section("sae", "Health of the sparse autoencoder", inside.sae, ("sae in report.json", "sae")),
    Section("probe", "Probe", inside.probe, ("probe in report.json", "probe")),
    Section("costs", "Time and memory", origin.costs, ("manifest.json", "pipeline")),
    Section("settings", "Settings", origin.settings, ("config.yaml", "pipeline")),
    Section("versions", "Versions and artifacts", origin.versions, ("manifest.json", "pipeline")),
    Section("repeat", "Repeat this run", origin.repeat, ("the command in manifest.json", "pipeline")),
)

OF_A_STUDY = ("grid", "dose", "features", "sae", "probe")
"""Sections on what a run that measures folders never makes."""


def sections_of(run: RunFolder) -> list[Section]:
    """The sections that apply to a run: a study of a model, perhaps with published numbers, or the measurement of folders."""
    passed = {*OF_A_STUDY} if run.metrics.get("folders") else {"folders"}
    passed |= set() if run.metrics.get("published") else {"compare"}
    return [section for section in SECTIONS if section.key not in passed]


FAULTS = (KeyError, TypeError, ValueError, IndexError, AttributeError)
"""What data of another shape than expected raise; one bad section must not cost the others."""


def render(section: Section, run: RunFolder, template: Callable[[str, Content], str]) -> Markup:
    """A section's body, or a note on what is missing and which task makes it."""
    where, task = section.source
    try:
        content = section.build(run)
    except FAULTS as error:
        note = {"message": f"{where} could not be shown ({type(error).__name__}: {error}).", "task": task}
        return Markup(template("missing", note))
    if content is None:
        return Markup(template("missing", {"message": f"This run has no {where}.", "task": task}))
    return Markup(template(section.key, content))
