"""Published numbers beside measured ones, and whether the two were measured alike."""

from collections.abc import Iterator, Mapping
from typing import Any

from difflens.report.run_folder import Json, RunFolder
from difflens.report.wording import NONE, baseline, mitigated, number

MEASURES = {
    "fd": "FD, soft",
    "fd_official": "FD, soft, as released",
    "fd_prompt_mean": "FD, soft, mean over prompts",
    "fd_official_prompt_mean": "FD, soft, as released, mean over prompts",
    "fid": "FID",
    "clip_i_paper": "CLIP-I, (cos + 1) / 2",
    "clip_t_paper": "CLIP-T, (cos + 1) / 2",
}
"""What is compared, by its key in a row of metrics.json."""


def beside_published(run: RunFolder) -> Mapping[str, Any] | None:
    """A line per measure and one per condition; None for a run that compares with nothing."""
    published = run.metrics.get("published")
    if not published:
        return None
    conditions = list(_conditions(published.get("protocol") or {}, run.metrics))
    differing = [name for name, _, _, same in conditions if not same]
    return {
        "source": published.get("source", ""),
        "lines": list(_lines(published, run.metrics, alike=not differing)),
        "conditions": conditions,
        "differing": ", ".join(differing),
    }


def _conditions(protocol: Json, metrics: Json) -> Iterator[tuple[str, str, str, bool]]:
    """Name of a condition, how it was there, how it is here, and whether that is the same."""
    here = {"model": metrics.get("model"), "n": metrics.get("n"), **(metrics.get("protocol") or {})}
    for key, value in protocol.items():
        found = here.get(key)
        yield key.replace("_", " "), str(value), NONE if found is None else str(found), value == found


def _lines(published: Json, metrics: Json, *, alike: bool) -> Iterator[tuple[str, ...]]:
    """Label; published without and with the method; measured likewise; measured less published where they are alike."""
    there = {**metrics, "rows": published.get("rows") or []}
    rows = [find(of) or {} for of in (there, metrics) for find in (baseline, mitigated)]
    known = [key for key in MEASURES if any(row.get(key) is not None for row in rows)]
    for key in known:
        cells = [row.get(key) for row in rows]
        gaps = [_gap(cells[2 + i], cells[i]) if alike else NONE for i in (0, 1)]
        yield MEASURES[key], *(number(cell, 3) for cell in cells), *gaps


def _gap(here: float | None, there: float | None) -> str:
    if here is None or there is None:
        return NONE
    return ("+" if here > there else "") + number(here - there, 3)
