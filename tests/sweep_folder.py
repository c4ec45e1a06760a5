"""Jobs of a sweep as their folders look, without running anything."""

import json
from pathlib import Path

import yaml

from difflens.main import conf_folder

LIST = yaml.safe_load((conf_folder() / "metric" / "measures.yaml").read_text(encoding="utf-8"))["measures"]
MEASURES = [{"key": key, **entry} for key, entry in LIST.items()]
"""What metrics.json lists."""

SHARES = {
    "female": {"share": 0.5, "low": 0.4, "high": 0.6, "count": 2},
    "male": {"share": 0.5, "low": 0.4, "high": 0.6},
}


def write_job(
    folder: Path,
    overrides: list[str],
    *,
    fd: float | None,
    fid: float = 3.0,
    before: float = 0.3,
    female: float = 0.5,
    **status: object,
) -> None:
    """One job: `fd` of its edited images and `before` of the others, and the share of women among the edited ones."""
    folder.mkdir(parents=True)
    state = {"status": "running" if fd is None else "done", "overrides": overrides, "seconds": 61.0, **status}
    (folder / "status.json").write_text(json.dumps(state))
    if fd is None:
        return
    original = {
        "method": "original",
        "n": 4,
        "fd_hard": before,
        "fd_chance": 0.1,
        "fid": 4.0,
        "clip_i": None,
        "leakage": {},
        "shares": SHARES,
    }
    leakage = {"age": {"flip_rate": 0.02}, "race": {"flip_rate": 0.05}}
    edited = {**original, "method": "difflens", "fd_hard": fd, "fid": fid, "clip_i": 0.97, "leakage": leakage}
    shares = {"female": female, "male": 1 - female}
    edited["shares"] = {name: {**SHARES[name], "share": share} for name, share in shares.items()}
    metrics = {"model": "mini <&>", "attribute": "gender", "classes": ["female", "male"], "rows": [original, edited]}
    (folder / "metrics.json").write_text(
        json.dumps({**metrics, "n": 4, "target": {"female": 0.5, "male": 0.5}, "measures": MEASURES})
    )
    doses = [{"strength": {"female": s, "male": s}, "success": {}, "shares": {"female": 0.4 + s / 10}} for s in (0, 1)]
    (folder / "report.json").write_text(json.dumps({"dose": {"points": doses, "chosen": {"female": 1.0}}}))
    (folder / "report.html").write_text("<html></html>")
