"""Images are read once, Lightning computes where the model runs, and a tracker is told of runs that fail at once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from program import Program
from wandb_file import records

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


def test_a_failed_check_is_a_finished_run_and_a_redone_job_replaces_its_own(tmp_path: Path) -> None:
    program, found = Program(tmp_path), []
    for _ in range(2):
        ended = program("logger=wandb", "logger.mode=offline", "sae.k=998,999", "-m")
        assert ended.code == 2, ended.err
        jobs = [records(folder) for folder in sorted(tmp_path.glob("outputs/sweeps/*/[01]"))]
        assert [job["exit"][0].exit_code for job in jobs] == [2, 2]
        assert {job["run"][0].run_group for job in jobs} == {next(tmp_path.glob("outputs/sweeps/*")).name}
        found.append([job["run"][0].run_id for job in jobs])
    assert found[0] == found[1] and len(set(found[0])) == 2
