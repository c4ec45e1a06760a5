"""Images are read once however many questions are asked, and Lightning computes where the model runs."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from difflens.study.workbench import Workbench, trainer_settings
from difflens.vocabulary import Attribute


def test_the_same_images_are_read_once() -> None:
    read: list[int] = []

    class Counting:
        name, fingerprint, classes = "counting", "0", {"gender": ("female", "male")}

        def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            read.append(len(images))
            return {"gender": images.flatten(1)[:, :2]}

    bench = object.__new__(Workbench)
    bench.__dict__ |= {"cfg": SimpleNamespace(missing_faces="count"), "_answered": None, "labelling_judge": Counting()}
    bench.__dict__ |= {"attribute": Attribute("gender", ("female", "male"))}
    first, second = torch.zeros(3, 3, 2, 2, dtype=torch.uint8), torch.ones(5, 3, 2, 2, dtype=torch.uint8)
    assert bench.answers(first) is bench.answers(first)
    assert len(bench.answers(second)["gender"]) == 5 and len(bench.answers(first)["gender"]) == 3
    assert read == [3, 5, 3]


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
