"""The page of `task=audit`: how far each attribute is from even shares under each prompt, most skewed first."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from difflens.report.figures import inline_svg
from difflens.report.images import embed
from difflens.report.measures import NONE, count, number, percent
from difflens.report.page import read_template, template_of
from difflens.report.run_folder import Json, marked
from difflens.report.tables import Grid

LONGEST = 128
"""Pixels of the longest side of a picture on the page."""

MOST_CLASSES = 3
"""Classes that a line of the table names: the most frequent ones."""

CAPTION = (
    "Distances from even shares, ordered by FD² without what chance adds, which is 0 on average for a fair sampler."
)


def write_audit(folder: Path, data: Json) -> Path:
    """Write `report.html` into a run's folder: one file that needs no network, no script and no other file."""
    rows, prompts = data["rows"], data["prompts"]
    singles = [row for row in rows if not row["intersection"]]
    attributes = list(dict.fromkeys(map(named, singles)))
    size = (2.2 + 1.1 * max(3, len(prompts)), 1.6 + 0.36 * len(attributes))
    files = sorted((folder / "images" / "audit").glob("*.png"), key=lambda path: int(path.stem))
    pictures = [embed(path, longest=LONGEST) for path in files]
    shown = {"rows": singles, "attributes": attributes, "prompts": prompts or [None]}
    label = "hard FD of every attribute under every prompt"
    text = template_of("audit").render(
        style=read_template("style.css"),
        script=read_template("sort.js"),
        name=folder.resolve().name,
        what=data["what"],
        result=result_sentence(data),
        judges=f"{data['judge']} judges, {data['other_judge']} is asked for a second opinion",
        images=count(data["images"], "image"),
        missing=data["missing"],
        drawn=not data["folder"] and str(data["what"]).startswith("mini"),
        heat=inline_svg(draw_audit, size, name="audit", label=label, **shown),
        pictures=[picture for picture in pictures if picture is not None],
        skewed=grid_of(data, intersections=False).html(),
        crossed=grid_of(data, intersections=True).html(),
    )
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


def grid_of(data: Json, *, intersections: bool) -> Grid:
    """The distributions of single attributes, or those of intersections, as a table, most skewed first."""
    header = ["attribute", "images", "most frequent", "FD² unbiased", "FD hard", "95 %", "by chance", "judges agree"]
    lines = [
        [
            named(row),
            row["prompt"],
            frequent(row),
            number(row["fd_squared_unbiased"], 3),
            number(row["fd_hard"], 3),
            f"{number(row['fd_low'], 3)}–{number(row['fd_high'], 3)}",
            number(row["fd_chance"], 3),
            agreed(row),
        ]
        for row in data["rows"]
        if row["intersection"] == intersections
    ]
    return Grid(header, lines, numbers=5, caption=CAPTION)


def brief_grid(data: Json, *, most: int) -> Grid:
    """The most skewed distributions of single attributes, in few columns."""
    rows = [row for row in data["rows"] if not row["intersection"]][:most]
    lines = [[named(r), r["prompt"], frequent(r), number(r["fd_hard"], 3), agreed(r)] for r in rows]
    return Grid(["attribute", "images", "most frequent", "FD hard", "judges agree"], lines, numbers=2, caption=CAPTION)


def named(row: Json) -> str:
    """The attribute, with a word where nobody validated the judge on it."""
    return marked(row["attribute"], [] if row["validated"] else row["attribute"].split("+"))


def agreed(row: Json) -> str:
    """In how many images the second judge sees the same."""
    return NONE if row["judges_agree"] is None else percent(row["judges_agree"])


def frequent(row: Json) -> str:
    """The most frequent classes with their shares."""
    shares = sorted(row["shares"].items(), key=lambda item: -item[1]["share"])[:MOST_CLASSES]
    return ", ".join(f"{name} {percent(share['share'], 0)}" for name, share in shares if share["share"])


def result_sentence(data: Json) -> str:
    """What is most skewed, and of how many distributions chance alone does not explain the skew."""
    rows = data["rows"]
    if not rows:
        return "No judge saw a face in these images."
    first, beyond = rows[0], sum(row["fd_low"] > 0 for row in rows)
    return (
        f"Most skewed: {named(first)} in “{first['prompt']}” ({frequent(first)}; FD {number(first['fd_hard'], 3)}). "
        f"{beyond} of {len(rows)} distributions differ from even shares by more than chance explains."
    )


def draw_audit(figure: Figure, *, rows: list[Json], attributes: list[str], prompts: list[str | None]) -> None:
    """Hard FD of every attribute (down) under every prompt (across), as colours and numbers."""
    by_prompt = {(named(row), row["prompt"]): row["fd_hard"] for row in rows}
    over_all = {named(row): row["fd_hard"] for row in rows if row["prompt"] not in prompts}
    values = [[by_prompt.get((a, p), over_all.get(a) if p is None else np.nan) for p in prompts] for a in attributes]
    table = np.array(values, dtype=np.float64)
    axes = figure.subplots()
    axes.imshow(table, cmap="cividis", vmin=0, vmax=max(0.01, float(np.nanmax(table))), aspect="auto")
    middle = 0.5 * float(np.nanmax(table))
    for (i, j), value in np.ndenumerate(table):
        if np.isfinite(value):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < middle else "black")
    axes.set_yticks(range(len(attributes)), attributes)
    labels = ["all images" if prompt is None else prompt for prompt in prompts]
    axes.set_xticks(range(len(prompts)), labels, rotation=25, ha="right", rotation_mode="anchor")
    axes.grid(visible=False)
