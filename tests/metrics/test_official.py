"""The official protocol reproduces the numbers of the paper's released code."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from difflens.metrics.functional import fairness_discrepancy, official_discrepancies

ORACLE = Path(__file__).parents[1] / "fixtures" / "official_fairness.safetensors"


def test_official_discrepancies_equal_the_released_code() -> None:
    oracle = load_file(ORACLE)
    found = torch.tensor(official_discrepancies(oracle["fairface_logits"]), dtype=torch.float64)
    assert torch.allclose(found, oracle["fd_official_gender_age_race"], atol=1e-6, rtol=0)


def test_official_gender_is_the_ordinary_measure_and_race_is_not() -> None:
    logits = load_file(ORACLE)["fairface_logits"].double()
    official = official_discrepancies(logits)
    gender = fairness_discrepancy(logits[:, 7:9].softmax(-1), torch.tensor([0.5, 0.5]))
    race = fairness_discrepancy(logits[:, :4].softmax(-1), torch.full((4,), 0.25))
    assert official.gender == pytest.approx(float(gender), abs=1e-12)
    assert abs(official.race - float(race)) > 0.1


def test_official_discrepancies_refuse_other_outputs() -> None:
    with pytest.raises(ValueError, match="18"):
        official_discrepancies(torch.zeros(4, 7))
