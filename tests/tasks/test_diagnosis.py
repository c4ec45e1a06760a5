"""Studies broken on purpose, each told by its own sign, beside a healthy one of the same size that shows none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from program import Program
from torch import Tensor, nn

from difflens.report.diagnosis import Sign, diagnose
from difflens.report.run_folder import read_run

SMALL = [
    *("model.steps=8", "model.micro_batch=32", "data.images=192", "sae.expansion=4", "sae.k=16"),
    *("sae.training.tokens=300000", "sae.training.batch=2048", "probe.iterations=50", "metric.images=64"),
    *("attribution.images_per_class=48", "metric.reference.images=64", "metric.cards=1"),
    *("mitigation.calibration.first=4", "mitigation.calibration.largest=16"),
    *("mitigation.calibration.refinements=0", "mitigation.calibration.images=32"),
]
"""As small as a study can be in which features are found that work."""


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Program:
    program = Program(tmp_path_factory.mktemp("diagnosis") / "study")
    program.done(*SMALL)
    return program


def signs(program: Program) -> dict[str, Sign]:
    return {sign.key: sign for sign in diagnose(read_run(program.latest))}


def broken(
    healthy: Program, folder: Path, *overrides: str, prepare: Callable[[], None] | None = None
) -> dict[str, Sign]:
    """The signs of the healthy study with something broken; all that is found is told on the page and by the program."""
    program = healthy.copied(folder / "study")
    ended = program.done(*SMALL, "mitigation.strength=4", *overrides, prepare=prepare)
    found, said = signs(program), " ".join(ended.out.split())
    page = (program.latest / "report.html").read_text()
    for sign in found.values():
        assert (f"{sign.title}: {sign.evidence}" in said) == bool(sign.found)
        assert (f"{sign.title}: yes" in page) == bool(sign.found)
    return found


def test_a_healthy_study_shows_none(healthy: Program) -> None:
    found = signs(healthy)
    assert [(sign.key, sign.found) for sign in found.values()] == [
        ("features", False),
        ("attribution", False),
        ("intervention", False),
    ], found


def test_an_untrained_autoencoder_is_told_by_its_features(healthy: Program, tmp_path: Path) -> None:
    found = broken(healthy, tmp_path, "sae.training.tokens=2048", "sae.training.lr=1e-9")
    assert found["features"].found and "Raise sae.training.tokens" in found["features"].advice


def shuffle_the_labels_of_the_probe() -> None:
    from difflens.stages import probe

    whole = probe.learning_labels

    def shuffled(*arguments: Any) -> Tensor:
        labels = whole(*arguments)
        return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]

    probe.learning_labels = shuffled


def test_shuffled_labels_of_the_probe_are_told_by_the_attribution(healthy: Program, tmp_path: Path) -> None:
    # Another setting, so that the probe is made anew.
    found = broken(healthy, tmp_path, "probe.iterations=49", prepare=shuffle_the_labels_of_the_probe)
    assert found["attribution"].found and "look at the probe first" in found["attribution"].advice.lower()
    # The autoencoder is the healthy one.
    assert not found["features"].found


class Decoy(nn.Module):
    """Maps [n, 32, 8, 8] that vary with the image, say nothing of it, and that nothing reads."""

    def forward(self, x: Tensor) -> Tensor:
        noise = (torch.sin(x.float() * 1e4) * 43758.5).frac()
        return noise.repeat(1, 11, 1, 1)[:, :32, ::4, ::4]


def add_a_site_that_carries_nothing() -> None:
    from difflens.models import load

    whole = load.load_unconditional

    def loaded(*arguments: Any, **settings: Any) -> Any:
        model = whole(*arguments, **settings)
        model.unet.decoy = Decoy()
        model.unet.conv_in.register_forward_pre_hook(lambda _, given: (model.unet.decoy(given[0]), None)[1])
        return model

    load.load_unconditional = loaded


def test_a_site_that_carries_nothing_is_told_by_an_edit_without_effect(healthy: Program, tmp_path: Path) -> None:
    found = broken(
        healthy,
        tmp_path,
        *("data.site.module=decoy", "mitigation.update=symmetric", "mitigation.focus=0"),
        prepare=add_a_site_that_carries_nothing,
    )
    assert all(found[key].found for key in ("features", "attribution", "intervention")), found
    assert "`difflens task=localise`" in found["intervention"].advice
