"""Jobs of a sweep as their folders look, and the metrics.json of one run, without running anything."""

import json
from pathlib import Path
from typing import Any

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


def run_metrics() -> dict[str, Any]:
    """The metrics.json of a study of gender on the miniature."""
    share = {value: {"share": value, "low": value - 0.04, "high": value + 0.04} for value in (0.34, 0.66, 0.503, 0.497)}
    common = {"n": 512, "missing_faces": 0, "fd_chance": 0.0249, "fd_max": 0.7071, "intersectional_fd": 0.4}
    original = {"fd": 0.2263, "fd_hard": 0.2251, "fd_squared_unbiased": 0.0501, "fid": 3.21}
    original["shares"] = {"female": share[0.34], "male": share[0.66]}
    after = {"fd": 0.0061, "fd_hard": 0.0055, "fd_squared_unbiased": -0.0021, "fid": 3.05}
    after["shares"] = {"female": share[0.503], "male": share[0.497]}
    leakage = {
        name: {"flip_rate": rate, "flip_rate_edited": edited, "shift": {"first": rate / 2, "second": -rate / 2}}
        for name, rate, edited in (("age", 0.0213, 0.1061), ("glasses", 0.0042, None))
    }
    quality = {"kid": 0.0011, "kid_sd": 0.0002, "clip_i": 0.9712, "clip_i_paper": 0.9856, "editing_precision": 5.1}
    return {
        "model": "mini_ddpm",
        "attribute": "gender",
        "classes": ["female", "male"],
        "target": {"female": 0.5, "male": 0.5},
        "n": 512,
        "protocol": {
            "judge": "second_judge",
            "reference": {"name": "balanced renders", "n": 4096, "sha256": "ab" * 32},
        },
        "measures": MEASURES,
        "rows": [
            {"method": "original", "edited": 0, "leakage": {}, "clip_i": None, **common, **original},
            {"method": "difflens", "edited": 82, "leakage": leakage, **common, **quality, **after},
        ],
    }
