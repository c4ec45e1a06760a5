"""Every script of `experiments/` starts, says what it does, and refuses in one line what is not there."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from difflens.miniature.faces import FACTORS, render
from difflens.miniature.population import named_population

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


def test_what_composes_a_configuration_knows_the_choices_that_have_no_file() -> None:
    """Here conftest has registered them: run by itself, a script would not find the default task."""
    composing = [
        text for path in FOLDER.glob("*.py") if "= compose(" in (text := path.read_text()) or "return compose(" in text
    ]
    assert len(composing) > 2 and all("    register_products(conf_folder())\n" in text for text in composing)


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


def run_on_drawings(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict[str, Any]:
    command = ["judges_on_photographs.py", str(folder), str(folder / "labels.csv"), "judge=miniature", *more]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.chdir(folder)
    script("judges_on_photographs").main()
    return json.loads((folder / "outputs" / "judges_on_photographs.json").read_text())


def test_judges_are_measured_on_a_labelled_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    factors = named_population("balanced").sample(24, seed=1)
    labels = {name: [FACTORS[name][i] for i in factors[name].tolist()] for name in ("gender", "age")}
    for number, image in enumerate((render(factors) * 255).round().byte()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    women = [number for number, name in enumerate(labels["gender"]) if name == "female"]
    labels["gender"][women[0]], labels["gender"][women[1]] = "male", ""
    rows = [f"{number}.png,{labels['gender'][number]},{labels['age'][number]}" for number in range(24)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,gender,age", *rows]) + "\n")
    found = run_on_drawings(tmp_path, monkeypatch, "--sizes", "32", "4")["sizes"]
    gender, men = found["None"]["gender"], 24 - len(women)
    for role in ("scores", "labels"):
        assert gender[role]["n"] == 23 and gender[role]["right"] == pytest.approx(22 / 23), "one label is wrong"
        male, female = (gender[role]["classes"][name] for name in ("male", "female"))
        assert male["recall"] == pytest.approx(men / (men + 1)) and male["low"] < male["recall"] < male["high"] < 1
        assert female["n"] == len(women) - 2 and female["recall"] == 1
        assert male["auc"] == pytest.approx(female["auc"]) and 1 - 1 / (men + 1) <= male["auc"] < 1
    assert gender["judges_agree"] == 1 and found["32"] == found["None"], "which is their size"
    assert found["None"]["age"]["scores"]["right"] == 1 > found["4"]["age"]["scores"]["right"]
    told = capsys.readouterr().out
    assert f"  gender: {{female: 1.0000, male: {men / (men + 1):.4f}}}" in told and "24 photographs of" in told
    (tmp_path / "labels.csv").write_text("file,gender\n0.png,woman\n")
    with pytest.raises(SystemExit) as ended:
        run_on_drawings(tmp_path, monkeypatch)
    assert ended.value.code == 2 and "female, male, or empty; got ['woman']" in capsys.readouterr().err


def test_costs_are_measured_along_an_axis() -> None:
    cost = script("cost")
    small = cost.Case(images=16, steps=2, channels=8, width=4, size=16)
    found = cost.along("steps", (2, 4), small, "cpu", 1)
    assert {"sampling", "steering", "SAE's training", "probe", "attribution"} <= found.keys()
    assert all(min(costs["seconds"]) > 0 for costs in found.values())
