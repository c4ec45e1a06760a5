"""The Python interface reads a finished run and steers a pipeline with it; importing it costs nothing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from program import undisturbed

import difflens
from difflens.metrics.functional import chance_discrepancy

EXAMPLE = Path(__file__).parents[1] / "experiments" / "steer_a_pipeline.py"


def test_importing_the_package_imports_no_torch_and_names_its_functions() -> None:
    code = "import sys, difflens; print('torch' in sys.modules, {'steer', 'load_sae'} <= set(dir(difflens)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"
    with pytest.raises(AttributeError, match="no attribute 'stear'"):
        difflens.stear  # noqa: B018


def test_fd_of_tensors() -> None:
    logits = torch.tensor([[9.0, -9.0], [9.0, -9.0], [9.0, -9.0], [-9.0, 9.0], [float("nan")] * 2])
    found = difflens.fairness_discrepancy(logits, ["female", "male"])
    assert (found.n, found.missing) == (4, 1) and found.shares["female"].share == 0.75
    assert found.fd_hard == pytest.approx(0.25 * 2**0.5)
    assert found.fd_chance == pytest.approx(float(chance_discrepancy(4, torch.tensor([0.5, 0.5]))))
    assert difflens.fairness_discrepancy(logits, ["female", "male"], {"female": 0.75, "male": 0.25}).fd_hard == 0


def test_a_run_gives_back_its_sae_and_its_features_and_the_example_runs_on_it() -> None:
    program = undisturbed()
    run = program.latest
    features = difflens.load_features(run)
    assert features.attribute.classes == ("female", "male") and len(features.timesteps) == 4
    sae = difflens.load_sae(run)
    assert torch.equal(sae.decoder, features.mitigation.sae.decoder)
    chosen = program.json("report.json")["strength"]
    assert features.mitigation.strength.tolist() == pytest.approx([chosen["female"], chosen["male"]])
    command = [sys.executable, str(EXAMPLE), str(run), "--images", "8"]
    done = subprocess.run(command, cwd=program.folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["original", "steered"] and all(
        "FD hard" in line for line in lines
    )
    shares = [[float(share) for share in re.findall(r"male (\d\.\d+)", line)] for line in lines]
    assert all(sum(pair) == pytest.approx(1) for pair in shares)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no run folder"):
        difflens.load_features(tmp_path)
