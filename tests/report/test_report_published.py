"""Published beside measured: differences only where the protocols agree."""

from pathlib import Path
from typing import Any

import pytest

from difflens.report.published import beside_published
from difflens.report.run_folder import RunFolder

PUBLISHED = {
    "source": "a paper",
    "protocol": {"model": "p2", "n": 100, "judge": "fairface"},
    "rows": [{"method": "original", "fd": 0.226, "fid": 33.38}, {"method": "difflens", "fd": 0.002, "fid": 31.93}],
}


def run(**protocol: Any) -> RunFolder:
    rows = [{"method": "original", "fd": 0.25}, {"method": "difflens", "fd": 0.01, "clip_i_paper": 0.9}]
    metrics = {
        "model": "p2",
        "n": 100,
        "protocol": {"judge": "fairface", **protocol},
        "rows": rows,
        "published": PUBLISHED,
    }
    return RunFolder(path=Path("."), metrics=metrics, unseen={}, report={}, manifest={}, status={}, config="", edits={})


def test_alike_protocols_give_differences() -> None:
    found = beside_published(run())
    assert found is not None and found["differing"] == ""
    lines = {line[0]: line[1:] for line in found["lines"]}
    assert lines["FD, soft"] == ("0.226", "0.002", "0.250", "0.010", "+0.024", "+0.008")
    assert lines["FID"][2:] == ("–",) * 4 and lines["CLIP-I, (cos + 1) / 2"][3] == "0.900"


@pytest.mark.parametrize(("protocol", "name"), [({"judge": "clip"}, "judge"), ({"n": 3}, "n")])
def test_different_protocols_give_none(protocol: dict[str, Any], name: str) -> None:
    found = beside_published(run(**protocol))
    assert found is not None and found["differing"] == name
    assert all(line[5:] == ("–", "–") for line in found["lines"])
