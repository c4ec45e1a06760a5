"""What a run left behind, read tolerantly: an older, unfinished or partial run still gives a report."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

Json = Mapping[str, Any]


def unvalidated(metrics: Json) -> list[str]:
    """The attributes in a metrics.json whose reading by the judge nobody has validated."""
    words = (metrics.get("protocol") or {}).get("not_validated") or ""
    return words.split(", ") if words else []


def marked(name: str, doubtful: Sequence[str]) -> str:
    """An attribute's name, or a product's, in a table; it says so where one of `doubtful` is in it."""
    return f"{name} (not validated)" if set(name.split("+")) & set(doubtful) else name


@dataclass(frozen=True)
class Edit:
    """The classes that a mitigation moved an image between."""

    before: str
    after: str


@dataclass(frozen=True)
class RunFolder:
    """The files of a run, each under its name; one that is absent or cannot be read is empty here.

    Attributes:
        unseen: metrics_unseen.json, like metrics.json for prompts kept apart.
        config: text of config.yaml.
        edits: image id → edit, of images/edited.json: those of the first method.
        transfer: one calibration at other settings; of `task=transfer` alone.
        unreadable: one line for each file that is there but cannot be read.
    """

    path: Path
    metrics: Json
    unseen: Json
    report: Json
    manifest: Json
    status: Json
    config: str
    edits: Mapping[int, Edit]
    transfer: Json = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()

    def edits_of(self, method: str) -> Mapping[int, Edit] | None:
        """The edits of a method; None where no file tells which images a further method changed."""
        first = mitigated(self.metrics)
        return self.edits if not first or first.get("method") == method else None


def read_run(path: Path) -> RunFolder:
    """The run in a folder.

    Raises:
        ValueError: there is no such folder.
    """
    if not path.is_dir():
        raise ValueError(f"there is no run folder {str(path)!r}; give one that a run made, such as outputs/latest.")
    unreadable: list[str] = []
    # `metrics` to `status`, each kept in the file of its name but for `unseen`.
    names = {field.name: field.name for field in fields(RunFolder)[1:6]}
    names |= {"unseen": "metrics_unseen", "transfer": "transfer"}
    found = {field: _json(path / f"{name}.json", unreadable) for field, name in names.items()}
    config = path / "config.yaml"
    return RunFolder(
        path=path,
        **{field: data if isinstance(data, dict) else {} for field, data in found.items()},
        # Shown and never parsed, so that a damaged byte may stay in it.
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        edits=_edits(path / "images" / "edited.json", unreadable),
        unreadable=tuple(unreadable),
    )


def _json(path: Path, unreadable: list[str]) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        # Told on the page: a section that is missing for this reason would look like one that was never made.
        unreadable.append(f"{path.name} is not valid JSON ({error}); run the task that writes it again.")
        return None


def _edits(path: Path, unreadable: list[str]) -> dict[int, Edit]:
    entries = _json(path, unreadable) or []
    try:
        return {int(entry["id"]): Edit(str(entry["from"]), str(entry["to"])) for entry in entries}
    except (KeyError, TypeError, ValueError) as error:
        unreadable.append(f"{path.name} needs a list of id, from and to ({error!r}); run the steer task again.")
        return {}


def rows_of(metrics: Json) -> Sequence[Json]:
    """The rows of metrics.json, one per method."""
    # Anything else in the list is damage, which must not cost the sound rows.
    return [row for row in metrics.get("rows") or [] if isinstance(row, dict)]


def baseline(metrics: Json) -> Json | None:
    """The row of the unmitigated model."""
    return next((row for row in rows_of(metrics) if row.get("method") == "original"), None)


def edited_rows(metrics: Json) -> Sequence[Json]:
    """The rows of all methods but the unmitigated model."""
    return [row for row in rows_of(metrics) if row.get("method") != "original"]


def mitigated(metrics: Json) -> Json | None:
    """The row the report is about: the first method that is not the unmitigated model."""
    return next(iter(edited_rows(metrics)), None)


def flat(data: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and word of nested mappings by dotted path; lists are left out."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from flat(value, f"{where}.{key}".lstrip("."))
    elif not isinstance(data, list):
        yield where, data
