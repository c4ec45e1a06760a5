import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import difflens
from difflens.miniature.fit import FitSettings, Recipe, fit, learning_rate_factor


class Line(Recipe):
    """Fits y = 3x from batches that are a function of the step; can break off at a step."""

    name = "line"

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at

    def build(self) -> nn.Module:
        return nn.Linear(1, 1)

    def loss(self, model: nn.Module, step: int, settings: FitSettings) -> Tensor:
        if step == self.stop_at:
            raise KeyboardInterrupt
        x = torch.randn(settings.batch, 1, generator=torch.Generator().manual_seed(step))
        return (model(x).float() - 3 * x).square().mean()

    def report(self, model: nn.Module) -> dict[str, float]:
        return {"slope": float(next(model.parameters()))}

    def export(self, model: nn.Module, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), folder / "line.pt")


SETTINGS = FitSettings(steps=300, batch=32, lr=0.05, warmup=10, ema=0.9, checkpoint_every=50, report_every=100)


def test_the_loop_learns_and_leaves_its_figures(tmp_path: Path) -> None:
    figures = fit(Line(), SETTINGS, workspace=tmp_path / "work", export_to=tmp_path / "out")
    assert figures["slope"] == pytest.approx(3, abs=0.05)
    assert json.loads((tmp_path / "out" / "training.json").read_text())["settings"]["steps"] == 300
    assert len((tmp_path / "work" / "report.csv").read_text().splitlines()) == 4


def test_a_finished_fit_run_again_leaves_the_same_log(tmp_path: Path) -> None:
    for _ in range(2):
        fit(Line(), SETTINGS, workspace=tmp_path / "work", export_to=tmp_path / "out")
        log = (tmp_path / "out" / "training_log.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in log] == ["step", "100", "200", "300"]


@pytest.mark.parametrize("stop_at", [240, 200])
def test_a_resumed_fit_reports_each_step_once_and_as_an_uninterrupted_one(stop_at: int, tmp_path: Path) -> None:
    settings = replace(SETTINGS, checkpoint_every=160)
    fit(Line(), settings, workspace=tmp_path / "a", export_to=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(Line(stop_at=stop_at), settings, workspace=tmp_path / "b", export_to=tmp_path / "resumed")
    fit(Line(), settings, workspace=tmp_path / "b", export_to=tmp_path / "resumed")
    whole, resumed = ((tmp_path / name / "training_log.csv").read_text() for name in ("whole", "resumed"))
    assert whole == resumed
    steps = [row.split(",")[0] for row in (tmp_path / "b" / "log.csv").read_text().splitlines()]
    assert steps == ["step", "50", "100", "150", "200", "250", "300"]


@pytest.mark.parametrize("restarts", [(), (150,)])
def test_a_resumed_fit_equals_an_uninterrupted_one(restarts: tuple[int, ...], tmp_path: Path) -> None:
    settings = replace(SETTINGS, restarts=restarts)
    fit(Line(), settings, workspace=tmp_path / "a", export_to=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(Line(stop_at=170), settings, workspace=tmp_path / "b", export_to=tmp_path / "resumed")
    assert not (tmp_path / "resumed").exists()
    fit(Line(), settings, workspace=tmp_path / "b", export_to=tmp_path / "resumed")
    whole, resumed = (torch.load(tmp_path / name / "line.pt") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    short = FitSettings(steps=60, batch=8, lr=0.01, warmup=5, checkpoint_every=50)
    fit(Line(), short, workspace=tmp_path / "work", export_to=tmp_path / "out")
    with pytest.raises(ValueError, match="other settings"):
        fit(Line(), SETTINGS, workspace=tmp_path / "work", export_to=tmp_path / "out")


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    factors = [learning_rate_factor(step, SETTINGS) for step in range(300)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == 1.0 and factors[-1] < 1e-3
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_a_restart_begins_a_new_cycle_from_the_averaged_weights(tmp_path: Path) -> None:
    short = replace(SETTINGS, steps=150)
    longer = replace(SETTINGS, restarts=(150,))
    assert [learning_rate_factor(step, longer) for step in range(300)] == 2 * [
        learning_rate_factor(step, short) for step in range(150)
    ]
    fit(Line(), short, workspace=tmp_path / "short", export_to=tmp_path / "first_cycle")
    with pytest.raises(KeyboardInterrupt):
        fit(Line(stop_at=151), replace(longer, checkpoint_every=151), workspace=tmp_path / "work", export_to=tmp_path)
    average = torch.load(tmp_path / "first_cycle" / "line.pt")
    state = torch.load(tmp_path / "work" / "checkpoint.pt", weights_only=True)
    moved = state["model"]["weight"] - average["weight"]
    assert 0 < moved.abs() <= 1.01 * longer.lr * learning_rate_factor(150, longer)


def test_no_shipped_log_repeats_a_step() -> None:
    logs = sorted((Path(difflens.__file__).parent / "miniature" / "weights").rglob("training_log.csv"))
    assert len(logs) > 5
    for log in logs:
        steps = [row.split(",")[0] for row in log.read_text().splitlines()]
        assert len(steps) == len(set(steps)) > 1, log
