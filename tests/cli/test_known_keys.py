"""Keys that nothing reads are refused, those of the user's own files and of classes are not."""

from pathlib import Path
from typing import Any

import pytest

from difflens.cli.known_keys import check_keys
from difflens.store.errors import UserError

CONF = Path(__file__).parents[2] / "conf"


def check(tmp_path: Path, **config: Any) -> None:
    own = tmp_path / "mitigation" / "own.yaml"
    own.parent.mkdir()
    own.write_text("defaults: [difflens]\nextra: {depth: 3}\n")
    check_keys(config, (CONF, tmp_path))


@pytest.mark.parametrize(
    "config",
    [
        {"seed": 3, "images": "folder"},
        {
            "mitigation": {
                "target": {"female": 0.5, "a nurse": {"male": 1}},
                "hold": {"ratio": 3},
                "extra": {"depth": 4},
            }
        },
        {"mitigation": {"window": {"_target_": "x.Window", "anything": 1}}},
        {"attribute": {"_target_": "x", "parts": {"anything": 1}}},
        {"sae": {"anything": 1}, "metric": {"extractor": {"_target_": "x", "anything": 1}}},
    ],
)
def test_what_somebody_may_read_passes(tmp_path: Path, config: dict[str, Any]) -> None:
    check(tmp_path, **config)


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"sed": 3}, "'sed'; take it away. Did you mean 'seed'?"),
        (
            {"mitigation": {"hold": {"ratios": 3}}},
            "'mitigation.hold.ratios'; take it away. Did you mean 'mitigation.hold.ratio'?",
        ),
        ({"mitigation": {"extra": {"deepness": 4}}}, "'mitigation.extra.deepness'"),
        ({"attribution": {"seed": 4}}, "'attribution.seed'"),
        ({"probe": {"_target_": "x", "iteration": 4}}, "'probe.iteration'"),
    ],
)
def test_what_nobody_reads_is_named(tmp_path: Path, config: dict[str, Any], path: str) -> None:
    with pytest.raises(UserError, match="nothing reads ") as raised:
        check(tmp_path, **config)
    assert path in str(raised.value)
