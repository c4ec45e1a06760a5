"""`auto` takes bfloat16 where a processor computes it, and never where it would be emulated."""

import pytest
import torch

from difflens.models import devices
from difflens.models.devices import choose_precision, fast_autocast


@pytest.mark.parametrize(
    ("instructions", "chosen"),
    [({"avx512_bf16": True}, "bf16"), ({"bf16": True}, "bf16"), ({"avx2": True, "avx512_bf16": False}, "fp32")],
)
def test_auto_follows_the_processors_instructions(
    instructions: dict[str, bool], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    assert choose_precision("auto", "cpu") == chosen
    with fast_autocast():
        assert torch.is_autocast_enabled("cpu") == (chosen == "bf16")
    assert choose_precision("fp32", "cpu") == "fp32"


def test_emulated_bf16_is_obeyed_and_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    devices._warn_once.cache_clear()
    assert [choose_precision("bf16", "cpu") for _ in range(2)] == ["bf16", "bf16"]
    assert [record.getMessage() for record in caplog.records] == [
        "cpu has no bf16 instructions and emulates them slowly; model.precision=auto is faster"
    ]
