"""The benchmark steers each preset where, when and with as many latents as its study does, and times whole training steps."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra.utils import instantiate

PRESETS = ("gender", "age", "race")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parents[1] / "experiments" / "benchmark.py"
    spec = importlib.util.spec_from_file_location("benchmark", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_timed_at_its_own_place(benchmark: ModuleType, monkeypatch, name: str) -> None:
    edits: list[Any] = []
    study = benchmark.study
    monkeypatch.setattr(benchmark, "study", lambda *a, **k: edits.append(study(*a, **k)) or edits[-1])
    cfg = benchmark.settings_of(name, "model.steps=2", "model.micro_batch=1")
    found = benchmark.steering(instantiate(cfg.model), cfg, repeats=1)
    site, window = instantiate(cfg.data.site), instantiate(cfg.mitigation.window)
    assert (edits[0].site, edits[0].window) == (site, window)
    assert edits[0].focus == cfg.mitigation.focus > 0
    assert len(edits[0].statistics.latents) == cfg.attribution.top * len(cfg.attribute.classes)
    assert all(each["ratio"] > 0 for each in found.values())
    line = benchmark.row(name, cfg, found)
    assert line.startswith(f"{name} ({site.module}, steps {window.start:g} to ") and line.count("×") == 5


def test_the_presets_are_those_of_the_miniature_and_lie_apart(benchmark: ModuleType) -> None:
    assert benchmark.PRESETS == PRESETS
    sites = {str(benchmark.settings_of(name).data.site.module) for name in PRESETS}
    assert len(sites) == len(PRESETS), "a preset was not composed"


def test_a_training_step_is_timed_over_its_own_dense_product(benchmark: ModuleType) -> None:
    found = benchmark.training(16, 64, 4, batch=32, repeats=3)
    assert found["x @ W_enc"]["ratio"] > 1
