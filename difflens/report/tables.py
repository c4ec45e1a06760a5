"""The summary of metrics.json as a table: for the terminal, for READMEs and for the page."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from difflens.report.formats import Grid, TerminalTable
from difflens.report.run_folder import Json
from difflens.report.wording import NONE, count, fairness, interval, method_name, number, percent, rows_of


class Measure(NamedTuple):
    """One line of the summary: a label, a cell per method, and what the measure means."""

    label: str
    cells: tuple[str, ...]
    meaning: str


def summary_measures(metrics: Json) -> list[Measure]:
    """The measures that at least one method has, in reading order."""
    rows = rows_of(metrics)
    lines = ((label, tuple(cell(row) for row in rows), meaning) for label, cell, meaning in _lines(metrics))
    return [Measure(*line) for line in lines if any(cell.strip(f"{NONE} /") for cell in line[1])]


def protocol_sentence(metrics: Json) -> str:
    """Under which conditions the numbers hold: judge, extractor, reference, steps, seed."""
    protocol = dict(metrics.get("protocol") or {})
    reference = protocol.pop("reference", None)
    words = [f"{key.replace('_', ' ')} {value}" for key, value in protocol.items() if value is not None]
    if isinstance(reference, dict):
        sha256 = str(reference.get("sha256", ""))[:12]
        words.append(f"reference {reference.get('name', '?')}, n {reference.get('n', '?')}, sha256 {sha256 or NONE}")
    return " · ".join(words)


def summary_grid(metrics: Json) -> Grid:
    """The summary: a line per measure, a column per method, and the protocol below."""
    header = ["measure", *(method_name(row) for row in rows_of(metrics))]
    rows = [[measure.label, *measure.cells] for measure in summary_measures(metrics)]
    return Grid(header, rows, numbers=len(header) - 1, caption=protocol_sentence(metrics))


def summary_table(metrics: Json, *, about: str = "") -> TerminalTable:
    """The summary for a terminal; `about` is added to its title."""
    return summary_grid(metrics).terminal(" · ".join(filter(None, (_title(metrics), about))))


def summary_markdown(metrics: Json) -> str:
    """The summary as a GitHub-flavoured Markdown table with a title and the protocol."""
    return f"**{_title(metrics)}**\n\n{summary_grid(metrics).markdown()}"


def _title(metrics: Json) -> str:
    n = metrics.get("n")
    words = [str(metrics.get("attribute", "attribute")), str(metrics.get("model", "model"))]
    return " · ".join([*words, count(n, "image")] if isinstance(n, int) else words)


Line = tuple[str, Callable[[Json], str], str]


def _lines(metrics: Json) -> Iterator[Line]:
    yield from _fairness(metrics)
    yield from _shares(metrics)
    yield from _quality()
    yield from _leakage(metrics)
    yield from _accounting()


def _decimals(key: str, digits: int) -> Callable[[Json], str]:
    return lambda row: number(row.get(key), digits)


def _fairness(metrics: Json) -> Iterator[Line]:
    largest = next((row["fd_max"] for row in rows_of(metrics) if row.get("fd_max") is not None), None)
    limit = f"; the largest possible is {number(largest, 3)}" if largest is not None else ""
    pooled = ", prompts pooled" if any(row.get("prompts") for row in rows_of(metrics)) else ""
    meaning = f"distance of the judge's mean softmax from the target; 0 is fair{limit}"
    yield f"FD, soft{pooled}", _decimals("fd", 3), meaning
    yield f"FD, hard{pooled}", _decimals("fd_hard", 3), "the same with every image counted as its most likely class"
    yield "FD, soft, as released", _decimals("fd_official", 3), "by the paper's own code, from the judge's raw outputs"
    yield "FD hard, mean over prompts", _decimals("fd_hard_prompt_mean", 3), "the mean of every prompt's own hard FD"
    for group in ("prompts", "parts"):
        for name in dict.fromkeys(name for row in rows_of(metrics) for name in row.get(group) or {}):
            yield (
                f"FD hard, {name}",
                _within(group, name),
                "of these images" if group == "prompts" else "of this attribute",
            )
    meaning = "expected hard FD of a perfectly fair sampler of as many images"
    yield f"FD by chance{pooled}", _decimals("fd_chance", 3), meaning
    if pooled:
        yield "FD by chance, mean over prompts", lambda row: number(fairness(row, "fd_chance"), 3), meaning
    yield "FD², unbiased", _decimals("fd_squared_unbiased", 4), "without the sampling noise; may be negative"
    yield "intersectional FD", _decimals("intersectional_fd", 3), "over the classes of all attributes together"


def _within(group: str, name: str) -> Callable[[Json], str]:
    return lambda row: number(((row.get(group) or {}).get(name) or {}).get("fd_hard"), 3)


def _shares(metrics: Json) -> Iterator[Line]:
    target = metrics.get("target") or {}
    for name in metrics.get("classes") or target:
        goal = f" (target {percent(target[name], 0)})" if name in target else ""
        yield f"{name}{goal}", _share(name), "share of the images, with its 95 % Wilson interval"


def _share(name: str) -> Callable[[Json], str]:
    return lambda row: interval((row.get("shares") or {}).get(name) or {})


def _quality() -> Iterator[Line]:
    yield "FID ↓", _decimals("fid", 2), "Fréchet distance to the reference images"
    yield "KID ↓", _kid, "kernel distance to the reference images ± its spread over subsets"
    yield "CLIP-I ↑", _decimals("clip_i", 4), "cosine of each image with the same seed's unmitigated one"
    yield "CLIP-I ↑, (cos + 1) / 2", _decimals("clip_i_paper", 4), "the same on the paper's scale"
    yield "prompts obeyed ↑", lambda row: percent(row.get("obeyed")), "images that show what their prompt is about"
    yield "CLIP-T ↑", _decimals("clip_t", 4), "cosine of each image with its prompt"
    yield "CLIP-T ↑, (cos + 1) / 2", _decimals("clip_t_paper", 4), "the same on the paper's scale"


def _kid(row: Json) -> str:
    value, spread = number(row.get("kid"), 4), number(row.get("kid_sd"), 4)
    return value if NONE in (value, spread) else f"{value} ± {spread}"


def _leakage(metrics: Json) -> Iterator[Line]:
    for name in dict.fromkeys(name for row in rows_of(metrics) for name in row.get("leakage") or {}):
        meaning = f"images whose {name} changed although only {metrics.get('attribute', 'another attribute')} should"
        yield f"leakage into {name}, all / edited", _flips(name), meaning
    yield "editing precision ↑", _decimals("editing_precision", 2), "mean logit change of the target over the others'"


def _flips(name: str) -> Callable[[Json], str]:
    def cell(row: Json) -> str:
        flips = (row.get("leakage") or {}).get(name) or {}
        return f"{percent(flips.get('flip_rate'))} / {percent(flips.get('flip_rate_edited'))}" if flips else NONE

    return cell


def _others(row: Json) -> str:
    parts = (row.get("other") or {}).values()
    return ", ".join(f"{number(other.get('images'), 0)} ({percent(other.get('share'))})" for other in parts) or NONE


def _accounting() -> Iterator[Line]:
    meaning = "unedited images in which the judge that chose what to edit sees the same class as the one that scores"
    yield "judges agree ↑", lambda row: percent(row.get("judges_agree")), meaning
    yield "images changed", _decimals("edited", 0), "the others are left as they were"
    yield "of these, class reached ↑", lambda row: percent(row.get("reached")), "images that show the class asked for"
    meaning = "whose likeliest class is none of the above; FD is measured among those"
    yield "images of other classes", _others, meaning
    yield "images without a face", _decimals("missing_faces", 0), "in which the judge found none"
    yield "seconds per image", _decimals("seconds_per_image", 3), ""
