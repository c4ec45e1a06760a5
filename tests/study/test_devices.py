"""Lightning computes where the model runs, unless told otherwise."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from difflens.study.workbench import trainer_settings


def settings(device: str | None, *, alone: bool = False, **trainer: Any) -> dict[str, Any]:
    usual = {"accelerator": None, "devices": 1, "strategy": "ddp"}
    model = {} if device is None else {"device": device}
    return trainer_settings(OmegaConf.create({"model": model, "trainer": {**usual, **trainer}}), alone=alone)


@pytest.mark.parametrize(
    ("device", "accelerator", "devices"),
    [(None, "cpu", 1), ("cpu", "cpu", 1), ("cuda", "cuda", 1), ("cuda:1", "cuda", [1]), ("mps", "mps", 1)],
)
def test_the_accelerator_follows_the_model(device: str | None, accelerator: str, devices: Any) -> None:
    for alone in (False, True):
        found = settings(device, alone=alone)
        assert (found["accelerator"], found["devices"]) == (accelerator, devices)
        assert found["strategy"] == ("auto" if alone else "ddp")


def test_several_devices_and_a_given_accelerator_stay() -> None:
    assert settings("cuda", devices=2)["devices"] == 2 and settings("cuda", devices=2, alone=True)["devices"] == 1
    assert settings("cuda:1", accelerator="cpu", devices=2) == {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    assert settings("cuda:1", devices=2, alone=True)["devices"] == [1]
    with pytest.raises(
        ValueError, match=r"model\.device=cuda:1 is one device and trainer\.devices=2 .* use model\.device=cuda"
    ):
        settings("cuda:1", devices=2)
