"""Every script of `experiments/` starts, says what it does, and refuses in one line what is not there."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "experiments"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"experiment_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "stand_in"))
def test_a_script_answers_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = script(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0 and f"usage: {name}.py" in capsys.readouterr().out


def test_a_missing_run_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["check_default_run.py", "/nowhere"])
    with pytest.raises(SystemExit) as ended:
        script("check_default_run").main()
    assert ended.value.code == 2 and "there is no /nowhere/metrics.json" in capsys.readouterr().err


def test_a_power_is_found_again() -> None:
    cost, sizes = script("cost"), (16, 32, 64, 128)
    exact = cost.fit(sizes, [3e-4 * size**1.7 for size in sizes])
    assert exact.exponent == pytest.approx(1.7) and exact.r2 == pytest.approx(1)
    noisy = cost.fit(sizes, [1.0, 2.0, 1.0, 2.0])
    assert noisy.r2 < 0.9


def test_costs_are_measured_along_an_axis() -> None:
    cost = script("cost")
    small = cost.Case(images=16, steps=2, channels=8, width=4, size=16)
    found = cost.along("steps", (2, 4), small, "cpu", 1)
    assert {"sampling", "steering", "SAE's training", "probe", "attribution"} <= found.keys()
    assert all(min(costs["seconds"]) > 0 for costs in found.values())
