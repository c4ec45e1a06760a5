"""What lay in the folders that `task=evaluate` measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from difflens.report.run_folder import Json, RunFolder
from difflens.report.wording import rows_of

SHOWN = 5
"""Names of files that are shown of each kind."""


def folders(run: RunFolder) -> Mapping[str, Any] | None:
    """Each folder with what was converted and refused in it, and the images without a counterpart."""
    found = run.metrics.get("folders")
    if not found:
        return None
    unpaired = {role: names for role, names in (run.metrics.get("unpaired") or {}).items() if names}
    return {
        "folders": [_describe(role, folder) for role, folder in found.items()],
        "pairs": next((row["pairs"] for row in rows_of(run.metrics) if row.get("pairs") is not None), None),
        "unpaired": ", ".join(f"{len(names)} of {role} ({_some(names)})" for role, names in unpaired.items()),
    }


def _describe(role: str, folder: Json) -> Mapping[str, Any]:
    converted, refused = (
        "; ".join(f"{kind['count']} {why} ({_some(kind['names'])})" for why, kind in folder[part].items())
        for part in ("converted", "refused")
    )
    return {
        "role": role,
        "path": folder["folder"],
        "images": folder["images"],
        "converted": converted,
        "refused": refused,
        "sha256": folder["sha256"][:12],
    }


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:SHOWN], *(["…"] if len(names) > SHOWN else [])])
