"""report.html of a run: one file with everything in it, section by section."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, UndefinedError
from markupsafe import Markup

from difflens.report import figures
from difflens.report.diagnosis import diagnose
from difflens.report.figures import inline_svg
from difflens.report.images import draw_grid, embed, pairs_of, select_pairs
from difflens.report.measures import METHOD_NAMES, count, fairness, method_name, number, percent, points, seconds
from difflens.report.published import beside_published
from difflens.report.run_folder import (
    Json,
    RunFolder,
    baseline,
    edited_rows,
    marked,
    mitigated,
    read_run,
    rows_of,
    unvalidated,
)
from difflens.report.tables import protocol_sentence, summary_lines
from difflens.report.transfer import draw_transfer, setting_table, transfer_size

TEMPLATES = Path(__file__).parent / "templates"

Content = Mapping[str, Any]

MOST_CARDS = 12
"""Cards on a page, shared among the classes, so that the report stays small."""


def write_report(run_folder: Path) -> Path:
    """Write `report.html` and, where there are images, `images/grid.png` into a run folder.

    Returns:
        Path of the page: one file that needs no network, no script and no other file.

    Raises:
        ValueError: there is no such folder.
    """
    run = read_run(Path(run_folder))
    _write_grid(run)
    page = run.path / "report.html"
    page.write_text(_render(run), encoding="utf-8")
    return page


def _write_grid(run: RunFolder) -> None:
    """Write `images/grid.png` of the first method, if there are pairs."""
    method = str((mitigated(run.metrics) or {}).get("method", "difflens"))
    if pairs := select_pairs(run.path / "images", run.edits, method=method):
        # A picture that cannot be read costs the sheet, and not the report.
        with suppress(OSError):
            sheet = draw_grid(pairs, method=METHOD_NAMES.get(method, method))
            sheet.save(run.path / "images" / "grid.png", optimize=True)


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


def _render(run: RunFolder) -> str:
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
        notes=[*_status_notes(run), *run.unreadable],
        sections=[(section.key, section.title, render(section, run, body)) for section in _sections_of(run)],
    )


def _status_notes(run: RunFolder) -> list[str]:
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


class Section(NamedTuple):
    """One section of the page: its id, which names its part of the template, and its heading.

    `build` gives what it shows of a run, None if the run lacks it; `source` says where its data are kept, and the task that
    writes them.
    """

    key: str
    title: str
    build: Callable[[RunFolder], Content | None]
    source: tuple[str, str]


def _classes_of(run: RunFolder) -> list[str]:
    return list(run.metrics.get("classes") or run.metrics.get("target") or {})


def grid(run: RunFolder) -> Content | None:
    """Pairs of the same seed by every method whose pictures are there, the edited ones first where those are known."""
    # A run without metrics may have pictures, and those of the program's own method are looked for.
    methods = [str(row.get("method")) for row in edited_rows(run.metrics)] or ["difflens"]
    found = [_pairs(run, method) for method in methods]
    return {"methods": shown} if (shown := [each for each in found if each["pairs"]]) else None


def _pairs(run: RunFolder, method: str) -> Content:
    images, edits = run.path / "images", run.edits_of(method)
    pairs = select_pairs(images, edits or {}, method=method)
    pictures = [(pair, embed(pair.before, longest=128), embed(pair.after, longest=128)) for pair in pairs]
    shown = [each for each in pictures if each[1] and each[2]]
    return {
        "method": METHOD_NAMES.get(method, method),
        "pairs": shown,
        "images": len(pairs_of(images, {}, method=method)),
        "edited": sum(pair.edit is not None for pair, _, _ in shown),
        "edited_in_all": None if edits is None else len(edits),
    }


def shares(run: RunFolder) -> Content | None:
    """Shares per class by every method, of all images and of every prompt's."""
    rows, classes = [row for row in rows_of(run.metrics) if row.get("shares")], _classes_of(run)
    if not rows or not classes:
        return None
    found = {"": rows}
    for prompt in rows[0].get("prompts") or {}:
        found[prompt] = [{**row["prompts"][prompt], "method": row["method"]} for row in rows]
    size = (5.2, 0.7 + 0.2 * -(-len(rows) // 3) + len(classes) * (0.35 + 0.16 * len(rows)))
    drawn = {}
    for index, (prompt, of_it) in enumerate(found.items()):
        target = of_it[0].get("target") or run.metrics.get("target") or {}
        shown = {"rows": of_it, "classes": classes, "target": target}
        label = f"share of each class by method{prompt and f': {prompt}'}"
        drawn[prompt] = inline_svg(figures.draw_shares, size, name=f"shares-{index}", label=label, **shown)
    return {"figures": drawn}


def summary(run: RunFolder) -> Content | None:
    """The table of all methods, and that of prompts kept apart."""
    tables = [
        {"methods": [*map(method_name, rows_of(of))], "lines": summary_lines(of), "protocol": protocol_sentence(of)}
        for of in (run.metrics, run.unseen)
        if rows_of(of)
    ]
    return {"tables": tables} if rows_of(run.metrics) else None


def diagnosis(run: RunFolder) -> Content | None:
    """Signs of failure: those found first, then those that were not measured, then those that are absent."""
    signs = sorted(diagnose(run), key=lambda sign: (not sign.found, sign.found is False))
    return {"signs": signs} if signs else None


def dose(run: RunFolder) -> Content | None:
    """Dose-response curves and the strength chosen per class."""
    data, classes = run.report.get("dose"), _classes_of(run)
    if not data or not data.get("points") or not classes:
        return None
    label = "success and shares against the strength of the edit"
    figure = dose_figure(data, classes, run.metrics.get("target"), name="dose", label=label)
    success = {name: [point.get("success", {}).get(name) for point in data["points"]] for name in classes}
    met = data.get("met") or {}
    chosen = [
        (name, number(value, 3), verdict(met.get(name), success.get(name, [])))
        for name, value in (data.get("chosen") or {}).items()
    ]
    return {"figure": figure, "chosen": chosen, "neutral": data.get("neutral")}


def dose_figure(
    data: Json, classes: Sequence[str], target: Mapping[str, float] | None, *, name: str, label: str
) -> Markup:
    """The curves of `draw_dose` in their size on a page."""
    shown = {"dose": data, "classes": classes, "target": target or {}}
    return inline_svg(figures.draw_dose, (7.2, 3.1), name=name, label=label, **shown)


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


def transfer(run: RunFolder) -> Content | None:
    """One calibration at other settings, and what calibrating there would have given."""
    if not run.transfer.get("settings"):
        return None
    label = "FD, reach and what is left alone over settings of the sampler"
    figure = inline_svg(draw_transfer, transfer_size(run.transfer), name="transfer", label=label, data=run.transfer)
    return {"figure": figure, "table": setting_table(run.transfer).html(), "images": run.transfer.get("images")}


def leakage(run: RunFolder) -> Content | None:
    """What every method did to all other attributes."""
    methods = []
    for index, row in enumerate(row for row in edited_rows(run.metrics) if row.get("leakage")):
        attributes = {marked(name, unvalidated(run.metrics)): each for name, each in row["leakage"].items()}
        size = (5.2, 1.1 + 0.5 * len(attributes))
        label = f"leakage per attribute: {method_name(row)}"
        figure = inline_svg(figures.draw_leakage, size, name=f"leakage-{index}", label=label, leakage=attributes)
        cells = [
            (
                name,
                *(percent(each.get(key)) for key in ("flip_rate", "flip_rate_edited")),
                points(each.get("shift") or {}),
            )
            for name, each in attributes.items()
        ]
        methods.append((method_name(row), figure, cells))
    return {"methods": methods, "attribute": run.metrics.get("attribute", "the attribute")} if methods else None


def features(run: RunFolder) -> Content | None:
    """Cards of the strongest latents of each class, by rank."""
    entries = [entry for entry in run.report.get("features") or [] if isinstance(entry, dict)]
    if not entries:
        return None
    classes = _classes_of(run)
    groups = list(dict.fromkeys([*classes, *(str(entry.get("class")) for entry in entries)]))
    ranked = sorted(entries, key=lambda entry: entry.get("rank") or 0)
    # The same number for every class, or the first one's latents would fill the page.
    limit = max(1, MOST_CARDS // len(groups))
    shown = [entry for name in groups for entry in [e for e in ranked if str(e.get("class")) == name][:limit]]
    cards = [_card(run, entry, classes, f"latent-{place}") for place, entry in enumerate(shown[:MOST_CARDS])]
    attribution = run.report.get("attribution") or {}
    gap = attribution.get("completeness_gap")
    about = {"scorer": attribution.get("method"), "gap": None if gap is None else f"{gap:.1e}"}
    return {"cards": cards, "in_all": len(entries), **about}


def _card(run: RunFolder, entry: Json, classes: Sequence[str], name: str) -> Content:
    """One latent: its strips of images, its curves, and what editing it alone does to the shares."""
    latent, figure = int(entry["latent"]), None
    if entry.get("score_per_step") or entry.get("activation_per_step"):
        shown, label = {"feature": entry, "classes": classes}, f"latent {latent} over the steps"
        figure = inline_svg(figures.draw_feature, (5.2, 2.1), name=name, label=label, **shown)
    paths = {part: entry.get(part) for part in ("top", "effect")}
    return {
        "latent": latent,
        "class": str(entry.get("class", "?")),
        "rank": entry.get("rank"),
        "score": number(entry.get("score"), 4),
        "figure": figure,
        "shift": points(entry.get("effect_shift") or {}),
        **{part: embed(run.path / str(path), longest=640) if path else None for part, path in paths.items()},
    }


def sae(run: RunFolder) -> Content | None:
    """How well and how sparsely the autoencoder reconstructs."""
    data = run.report.get("sae")
    if not data:
        return None
    drawn = []
    if curves := sum(bool(data.get(key)) for key in ("fvu_per_step", "loss_recovered_per_step")):
        size, label = (1.2 + 3.0 * curves, 2.5), "reconstruction at every denoising step"
        drawn.append(inline_svg(figures.draw_sae_steps, size, name="sae", label=label, sae=data))
    if (density := data.get("density") or {}).get("counts"):
        label = "how often latents fire"
        drawn.append(inline_svg(figures.draw_density, (4.6, 2.5), name="density", label=label, density=density))
    return {"sae": data, "figures": drawn}


def probe(run: RunFolder) -> Content | None:
    """From which step on the attribute can be read."""
    data = run.report.get("probe")
    if not data or not data.get("accuracy_per_step"):
        return None
    label = "accuracy of the probe at every denoising step"
    best = max((value for value in data["accuracy_per_step"] if value is not None), default=None)
    return {
        "figure": inline_svg(figures.draw_probe, (5.2, 2.6), name="probe", label=label, probe=data),
        "images": data.get("images_per_class"),
        "best": percent(best),
        "best_step": None if best is None else data["accuracy_per_step"].index(best),
        "chance": percent(data.get("chance")),
    }


def costs(run: RunFolder) -> Content | None:
    """Seconds per stage, the whole run's, and peak memory."""
    peaks = {"main memory": "peak_memory_mib", "GPU memory": "peak_gpu_memory_mib"}
    memory = {name: size for name, key in peaks.items() if (size := run.manifest.get(key)) is not None}
    stages = run.manifest.get("seconds") or {}
    return {"stages": stages, "memory": memory, "status": run.status} if stages or memory else None


def settings(run: RunFolder) -> Content | None:
    """The resolved configuration and what the command line changed."""
    about = {key: run.manifest.get(key) for key in ("overrides", "seeds", "chosen")}
    return {"config": run.config, **about} if run.config else None


def versions(run: RunFolder) -> Content | None:
    """Packages, machine and artifacts' fingerprints."""
    packages = {name: version for name, version in (run.manifest.get("versions") or {}).items() if version}
    machine = {key: run.manifest[key] for key in ("python", "platform") if run.manifest.get(key)}
    artifacts = run.manifest.get("artifacts") or []
    return {"versions": {**packages, **machine}, "artifacts": artifacts} if packages or artifacts else None


def repeat(run: RunFolder) -> Content | None:
    """The shell lines that make these numbers again."""
    command = run.manifest.get("command")
    if not command:
        return None
    if not isinstance(command, str):
        # Started by `python -m`, the program's name is that of a file in the package.
        program = PurePath(command[0]).name
        words = ["difflens"] if program in ("main.py", "__main__.py") else [program]
        command = shlex.join([*words, *map(str, command[1:])])
    git = run.manifest.get("git") or {}
    lines = [f"git checkout {shlex.quote(str(git['commit']))}", "uv sync --frozen"] if git.get("commit") else []
    return {"lines": [*lines, command], "dirty": bool(git.get("dirty"))}


SECTIONS = (
    Section("folders", "Folders", lambda run: run.metrics, ("folders in metrics.json", "evaluate")),
    Section("grid", "Before and after", grid, ("images/original and images/difflens", "steer")),
    Section("shares", "Shares", shares, ("metrics.json", "steer")),
    Section("summary", "Summary", summary, ("metrics.json", "steer")),
    Section("compare", "Published and measured", beside_published, ("published in metrics.json", "report")),
    Section("diagnosis", "Diagnosis", diagnosis, ("metrics.json", "report")),
    Section("dose", "Dose and response", dose, ("dose in report.json", "calibrate")),
    Section("transfer", "At other settings", transfer, ("transfer.json", "transfer")),
    Section("leakage", "Leakage into other attributes", leakage, ("leakage in metrics.json", "steer")),
    Section("features", "Top features", features, ("features in report.json", "attribution")),
    Section("sae", "Health of the sparse autoencoder", sae, ("sae in report.json", "sae")),
    Section("probe", "Probe", probe, ("probe in report.json", "probe")),
    Section("costs", "Time and memory", costs, ("manifest.json", "pipeline")),
    Section("settings", "Settings", settings, ("config.yaml", "pipeline")),
    Section("versions", "Versions and artifacts", versions, ("manifest.json", "pipeline")),
    Section("repeat", "Repeat this run", repeat, ("the command in manifest.json", "pipeline")),
)

OF_A_STUDY = ("grid", "diagnosis", "dose", "features", "sae", "probe")
"""Sections on what a run that measures folders never makes."""


def _sections_of(run: RunFolder) -> list[Section]:
    passed = {*OF_A_STUDY} if run.metrics.get("folders") else {"folders"}
    passed |= set() if run.metrics.get("published") else {"compare"}
    passed |= set() if run.transfer else {"transfer"}
    return [section for section in SECTIONS if section.key not in passed]


FAULTS = (KeyError, TypeError, ValueError, IndexError, AttributeError, UndefinedError)
"""What data of another shape than expected raise; one bad section must not cost the others."""


def render(section: Section, run: RunFolder, template: Callable[[Content], str]) -> Markup:
    """A section's body, or a note on what is missing and which task makes it."""
    where, task = section.source
    message = f"This run has no {where}."
    try:
        # The template reads the data as well, so it is filled inside the same net.
        if (content := section.build(run)) is not None:
            return Markup(template({"section": section.key, **content}))
    except FAULTS as error:
        message = f"{where} could not be shown ({type(error).__name__}: {error})."
    return Markup(template({"section": "missing", "message": message, "task": task}))
